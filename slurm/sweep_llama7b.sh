#!/bin/bash
# A sweep as an array, one job per cell: sbatch --array=0-17%4 slurm/sweep_llama7b.sh [SWEEP.toml]
# `python -m launch sweep SWEEP.toml --list` numbers the cells; `python -m launch sweep SWEEP.toml --nodes N` submits those that
# are not done yet. A cell comes back like any run, and is tried again after a failure.

# ---- Edit for your cluster ------------------------------------------------------------------------------------------
#SBATCH --job-name=sweep-llama7b
##SBATCH --partition=gpu --account=my-project
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8             # one per GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300             # five minutes before the time is up: save, and come back
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out

# module load cuda/12.8                 # or: source /opt/conda/etc/profile.d/conda.sh; conda activate palimpsest; PYTHON=python
# CONTAINER="apptainer exec --nv --bind /scratch /images/palimpsest.sif" PYTHON=python
export SCRATCH=${SCRATCH:-$HOME/scratch} DATA=${DATA:-$HOME/data}      # named by the recipe
ROOT=${ROOT:-$SLURM_SUBMIT_DIR}         # checkout of this repository, on shared storage
# ---------------------------------------------------------------------------------------------------------------------

source "$ROOT/slurm/job.sh" || { echo "ROOT=$ROOT: must be the checkout; submit from there, or set ROOT" >&2; exit 2; }
cell "${1:-$ROOT/recipes/sweep_lora_llama7b.toml}"
