#!/bin/bash
# The demo as a job without GPUs, to try a cluster: sbatch slurm/demo_cpu.sh [--train.steps 40 ...]
# A small LLaMA learns prose, then code with LoRA; held-out text of both is scored before and after, and a report is written
# to runs/demo-slurm/report. Submitted again it goes on, or says that it is done.

# ---- Edit for your cluster ------------------------------------------------------------------------------------------
#SBATCH --job-name=demo-cpu
##SBATCH --partition=cpu --account=my-project
#SBATCH --nodes=1-2                     # two, if they are there; a process on each
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@120             # two minutes before the time is up: save, and come back
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

ROOT=${ROOT:-$SLURM_SUBMIT_DIR}         # checkout of this repository, on shared storage
OUT=${OUT:-$ROOT/runs/demo-slurm}       # on shared storage
MAX_FILES=${MAX_FILES:-}                # 160: a small corpus in seconds, for a quick try
DS_CONFIG=$ROOT/ds_configs/zero3_cpu.json
export DS_ACCELERATOR=cpu
STOP_BEFORE=${STOP_BEFORE:-1min}
# ---------------------------------------------------------------------------------------------------------------------

source "$ROOT/slurm/job.sh" || { echo "ROOT=$ROOT: must be the checkout; submit from there, or set ROOT" >&2; exit 2; }
corpus=$OUT/corpus
code=(--eval.tasks.code.path "$corpus/code/heldout.jsonl" --data.tokenizer "$corpus/tokenizer.model")
prose=(--eval.tasks.prose.path "$corpus/prose/heldout.jsonl")
choices=(--eval.tasks.code_choice.path "$corpus/code/heldout.jsonl" --eval.tasks.prose_choice.path "$corpus/prose/heldout.jsonl")

here data_pipeline demo --out "$corpus" ${MAX_FILES:+--max-files "$MAX_FILES"} || exit
train "$ROOT/recipes/demo_base.toml" "$DS_CONFIG" --run.dir "$OUT/base" --data.sources.prose.path "$corpus/prose/train.jsonl" \
    "${code[@]}" "${prose[@]}" "$@"
train "$ROOT/recipes/demo.toml" "$DS_CONFIG" --run.dir "$OUT/lora" --adapter.kind lora --model.base "$OUT/base/export" \
    --data.sources.code.path "$corpus/code/train.jsonl" "${code[@]}" "${prose[@]}" "${choices[@]}" "$@"
here evals report "$OUT" --out "$OUT/report"
