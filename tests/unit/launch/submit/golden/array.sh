#!/bin/bash
# Written by python -m launch. It can be changed and submitted again: sbatch FILE

# ---- Edit for your cluster ------------------------------------------------------------------------------------------
#SBATCH --job-name=rank-study
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --array=0,3,5-9%4
#SBATCH --open-mode=append
#SBATCH --output=/scratch/user/study/logs/%A_%a.out

ROOT=/home/user/palimpsest       # checkout of this repository, on shared storage
PYTHON="$ROOT"/.venv/bin/python  # of the environment, or of the container
CONTAINER=                       # put before python, such as: apptainer exec --nv image.sif
SRUN=                            # more options of srun, such as: --container-image=image.sqsh
export MAX_REQUEUES=50           # the job comes back at most so often
export RETRIES=2                 # of these, after failures
# ---------------------------------------------------------------------------------------------------------------------

# shellcheck source=slurm/job.sh
source "$ROOT/slurm/job.sh"
cell '/home/user/rank study.toml'
