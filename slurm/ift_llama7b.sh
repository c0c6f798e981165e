#!/bin/bash
# Instruction finetuning of LLaMA-2-7B on one node: sbatch slurm/ift_llama7b.sh [--adapter.kind lora ...]
# Before the wall time it saves, requeues itself and goes on. To stop it for good: touch a file PREEMPT in its run directory.

# ---- Edit for your cluster ------------------------------------------------------------------------------------------
#SBATCH --job-name=ift-llama7b
##SBATCH --partition=gpu --account=my-project
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8             # one per GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300             # five minutes before the time is up: save, and come back
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# module load cuda/12.8                 # or: source /opt/conda/etc/profile.d/conda.sh; conda activate palimpsest; PYTHON=python
# CONTAINER="apptainer exec --nv --bind /scratch /images/palimpsest.sif" PYTHON=python
export SCRATCH=${SCRATCH:-$HOME/scratch} DATA=${DATA:-$HOME/data}      # named by the recipe
ROOT=${ROOT:-$SLURM_SUBMIT_DIR}         # checkout of this repository, on shared storage
RECIPE=${RECIPE:-$ROOT/recipes/ift_math_llama7b.toml}
DS_CONFIG=${DS_CONFIG:-$ROOT/ds_configs/zero3.json}
# ---------------------------------------------------------------------------------------------------------------------

source "$ROOT/slurm/job.sh" || { echo "ROOT=$ROOT: must be the checkout; submit from there, or set ROOT" >&2; exit 2; }
train "$RECIPE" "$DS_CONFIG" "$@"
