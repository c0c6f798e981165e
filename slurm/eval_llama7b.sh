#!/bin/bash
# Scores a checkpoint of a run with whole suites, on the GPUs of one node: sbatch slurm/eval_llama7b.sh RUN STEP [--suite NAME ...]
# STEP 0 is the base, "last" the newest checkpoint. The result goes to RUN/evals/STEP.<suites>.json. Submitted again after an
# interruption it goes on; what has been scored is not scored twice.
# After a run: sbatch --dependency=afterok:JOB slurm/eval_llama7b.sh RUN last

# ---- Edit for your cluster ------------------------------------------------------------------------------------------
#SBATCH --job-name=eval-llama7b
##SBATCH --partition=gpu --account=my-project
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8             # one per GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out

# module load cuda/12.8                 # or: source /opt/conda/etc/profile.d/conda.sh; conda activate palimpsest; PYTHON=python
# CONTAINER="apptainer exec --nv --bind /scratch /images/palimpsest.sif" PYTHON=python
ROOT=${ROOT:-$SLURM_SUBMIT_DIR}         # checkout of this repository, on shared storage
EVAL_DATA=${EVAL_DATA:-${DATA:-$HOME/data}/evals}    # the suites' data sets, as files
DTYPE=${DTYPE:-bfloat16}
BATCH_TOKENS=${BATCH_TOKENS:-32768}     # per GPU; while a 7B model writes, each takes 0.5 MB
# ---------------------------------------------------------------------------------------------------------------------

source "$ROOT/slurm/job.sh" || { echo "ROOT=$ROOT: must be the checkout; submit from there, or set ROOT" >&2; exit 2; }
if [ $# -lt 2 ]; then
    echo "usage: sbatch slurm/eval_llama7b.sh RUN STEP [--suite NAME ...]" >&2
    exit 2
fi
score "$@"
