#!/bin/bash
# Written by python -m launch. It can be changed and submitted again: sbatch FILE

# ---- Edit for your cluster ------------------------------------------------------------------------------------------
#SBATCH --job-name=code
#SBATCH --partition=gpu,long
#SBATCH --account=ab-12
#SBATCH --qos=high
#SBATCH --reservation=study
#SBATCH --constraint=h100&ib
#SBATCH --exclude=gpu[07-09,12]
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --dependency=afterany:12
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --open-mode=append
#SBATCH --output=/scratch/user/runs/code/slurm/%j.out
#SBATCH --mail-type=END,FAIL
#SBATCH --comment="it's a \"test\" #1"
#SBATCH -H

ROOT=/home/user/palimpsest       # checkout of this repository, on shared storage
PYTHON="$ROOT"/.venv/bin/python  # of the environment, or of the container
CONTAINER=                       # put before python, such as: apptainer exec --nv image.sif
SRUN=                            # more options of srun, such as: --container-image=image.sqsh
export MAX_REQUEUES=5            # the job comes back at most so often
export PREFLIGHT=no              # yes, no, or only: check the nodes before training
export EXCLUDE_FAILING=no        # yes or no: come back without nodes that preflight has named
export SCRATCH='/scratch/my files'
export NOTE='it'"'"'s'
module purge
module load cuda/12.8 gcc
# ---------------------------------------------------------------------------------------------------------------------

# shellcheck source=slurm/job.sh
source "$ROOT/slurm/job.sh"
train /home/user/palimpsest/recipes/cpt_code_llama7b.toml /home/user/palimpsest/ds_configs/zero3.json \
    --adapter.kind lora \
    --adapter.rank 64 \
    --optim.lr 2e-4 \
    --train.stop_before 2min \
    --run.dir /scratch/user/runs/code
