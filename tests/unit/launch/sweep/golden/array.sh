#!/bin/bash
# Written by python -m launch. It can be changed and submitted again: sbatch FILE

# ---- Edit for your cluster ------------------------------------------------------------------------------------------
#SBATCH --job-name=rank-study
#SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --array=0-1,3%2
#SBATCH --open-mode=append
#SBATCH --output=/shared/study/logs/%A_%a.out

ROOT=/shared/palimpsest          # checkout of this repository, on shared storage
PYTHON="$ROOT"/.venv/bin/python  # of the environment, or of the container
CONTAINER=                       # put before python, such as: apptainer exec --nv image.sif
SRUN=                            # more options of srun, such as: --container-image=image.sqsh
export MAX_REQUEUES=50           # the job comes back at most so often
export SCRATCH=/scratch/me
export RETRIES=1                 # of these, after failures
# ---------------------------------------------------------------------------------------------------------------------

# shellcheck source=slurm/job.sh
source "$ROOT/slurm/job.sh"
cell /shared/study/logs/array-1.json
