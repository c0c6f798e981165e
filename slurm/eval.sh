#!/bin/bash
# Scores a checkpoint of a run with whole suites, on the GPUs of one node: sbatch slurm/eval.sh RUN STEP [--suite NAME ...]
# Step 0 is the base. The result goes to RUN/evals/STEP.<suites>.json. Run again after an interruption, it goes on; what has been scored is not scored
# twice. After a run: sbatch --dependency=afterok:JOB slurm/eval.sh RUN STEP

# ---- Edit for your cluster ------------------------------------------------------------------------------------------
#SBATCH --job-name=eval
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out

ROOT=${ROOT:-$SLURM_SUBMIT_DIR}         # checkout of this repository, on shared storage
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
EVAL_DATA=${EVAL_DATA:-${DATA:-$HOME/data}/evals}    # the suites' data sets, as files
DTYPE=${DTYPE:-bfloat16}
BATCH_TOKENS=${BATCH_TOKENS:-32768}     # per GPU; while a 7B model writes, each takes 0.5 MB
# ---------------------------------------------------------------------------------------------------------------------

if [ $# -lt 2 ]; then
    echo "usage: sbatch slurm/eval.sh RUN STEP [--suite NAME ...]" >&2
    exit 2
fi
run=$1 step=$2
shift 2
[ $# -gt 0 ] || set -- --suite forgetting --suite learning-code

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
cd "$ROOT" || exit 1

if [ "$step" = 0 ]; then
    model=$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["config"]["model"]["base"])' "$run/run.json") || exit
else
    # The model of the checkpoint, as transformers reads it; an adapter is added to its base. On the node's own disk.
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/eval-$SLURM_JOB_ID.XXXXXX") || exit 1
    trap 'rm -rf "$scratch"' EXIT
    model=$scratch/model
    srun --nodes=1 --ntasks=1 "$PYTHON" -m training.checkpoint export "$run/checkpoints/$step" --format model --out "$model" || exit
fi

# --wait: when one process is lost the others end, too.
srun --kill-on-bad-exit=0 --wait=30 bash -c 'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID exec "$@"' - \
    "$PYTHON" -u -m evals run "$model" --run "$run" --step "$step" --data "$EVAL_DATA" --dtype "$DTYPE" \
    --batch-tokens "$BATCH_TOKENS" "$@"
