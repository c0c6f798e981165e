#!/bin/bash
# Continued pretraining of LLaMA-2-7B on several nodes: sbatch slurm/cpt_llama7b.sh [--adapter.kind lora ...]
# Stopped before the wall time it saves, and requeues itself at most MAX_REQUEUES times.

# ---- Edit for your cluster ------------------------------------------------------------------------------------------
#SBATCH --job-name=cpt-llama7b
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

ROOT=${ROOT:-$SLURM_SUBMIT_DIR}         # checkout of this repository, on shared storage
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
RECIPE=${RECIPE:-$ROOT/recipes/cpt_code_llama7b.toml}
DS_CONFIG=${DS_CONFIG:-$ROOT/ds_configs/zero3.json}
MAX_REQUEUES=${MAX_REQUEUES:-50}
export SCRATCH=${SCRATCH:-$HOME/scratch} DATA=${DATA:-$HOME/data}
# ---------------------------------------------------------------------------------------------------------------------

# srun does not take this over from the job by itself.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# An address, because node names need not resolve on other nodes.
MASTER_ADDR=$(scontrol show node "$first" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
export MASTER_ADDR HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
cd "$ROOT" || exit 1

# When one rank is lost the others end after --wait seconds. --kill-on-bad-exit would not wait: the first rank to exit
# with 2 or 85 would have the others killed, and with them the message and the exit code.
# The run knows the end of the job, too, and would stop by itself 5 minutes before it: the signal must come first.
srun --kill-on-bad-exit=0 --wait=30 "$PYTHON" -u -m training.main --ds_config "$DS_CONFIG" --recipe "$RECIPE" \
    --train.stop_before 2min "$@" &
step=$! requeue=no
# The wall time's signal comes to this script only; every rank must get it.
trap 'requeue=yes; scancel --signal=USR1 "$SLURM_JOB_ID.0" 2>/dev/null' USR1
# scancel makes the ranks save and exit with 85 too, but the job must not come back.
trap 'requeue=no' TERM

wait $step
# A trap ends `wait` before the step does.
while kill -0 $step 2>/dev/null; do wait $step; done
wait $step
code=$?

if [ $code -eq 85 ] && [ "$requeue" = yes ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$MAX_REQUEUES" ]; then
    echo "saved; requeueing (restart $((${SLURM_RESTART_COUNT:-0} + 1)) of at most $MAX_REQUEUES)"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
