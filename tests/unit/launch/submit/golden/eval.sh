#!/bin/bash
# Written by python -m launch. It can be changed and submitted again: sbatch FILE

# ---- Edit for your cluster ------------------------------------------------------------------------------------------
#SBATCH --job-name=code-eval
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --dependency=afterok:12
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --open-mode=append
#SBATCH --output=/scratch/user/runs/code/slurm/%j.out

ROOT=/home/user/palimpsest       # checkout of this repository, on shared storage
PYTHON="$ROOT"/.venv/bin/python  # of the environment, or of the container
CONTAINER=                       # put before python, such as: apptainer exec --nv image.sif
SRUN=                            # more options of srun, such as: --container-image=image.sqsh
export EVAL_DATA=/data/evals     # the suites' data sets, as files
export DTYPE=bfloat16            # of weights and activations while scoring
export BATCH_TOKENS=8192         # per GPU, while scoring
# ---------------------------------------------------------------------------------------------------------------------

# shellcheck source=slurm/job.sh
source "$ROOT/slurm/job.sh"
score /scratch/user/runs/code last --suite forgetting --suite learning-code@200
