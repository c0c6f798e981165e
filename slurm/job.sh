# shellcheck shell=bash
# What a job does, sourced by the scripts of this folder and by those that `python -m launch submit` writes:
#
#   train RECIPE DS_CONFIG [--section.setting value ...]    check, preflight, train, requeue when the time is up
#   cell SWEEP.toml                                         the same for cell $SLURM_ARRAY_TASK_ID of a sweep
#   score RUN STEP [--suite NAME ...]                       score a checkpoint ("last": the newest; 0: the base)
#   here MODULE [argument ...]                              python -m MODULE once, on the first node
#
# The variables that it reads; what is set before, in a script or for sbatch, stays.

: "${ROOT:=$SLURM_SUBMIT_DIR}"          # checkout of this repository, on shared storage
: "${PYTHON:=$ROOT/.venv/bin/python}"   # of the environment, or of the container
: "${CONTAINER:=}"                      # put before python: apptainer exec --nv --bind /scratch /images/palimpsest.sif
: "${SRUN:=}"                           # more options of srun: --container-image=/images/palimpsest.sqsh (pyxis), --cpu-bind=ldoms
: "${MAX_REQUEUES:=50}"                 # the job comes back at most so often
: "${RETRIES:=2}"                       # of these, after failures at the same step: a lost node, a GPU that fell off the bus
: "${PREFLIGHT:=yes}"                   # yes, no, or only: check the nodes before training, or check and end
: "${EXCLUDE_FAILING:=yes}"             # come back without the nodes that preflight has named
: "${PREFLIGHT_LIMIT:=60}"              # seconds that preflight waits for a slow node
: "${STOP_SIGNAL:=USR1}"                # what the ranks are sent when the time is up; TERM, where USR1 means something else
: "${STOP_BEFORE:=2min}"                # the run's own stop before the wall time, in case the signal does not come
export MAX_REQUEUES RETRIES PREFLIGHT EXCLUDE_FAILING PREFLIGHT_LIMIT STOP_SIGNAL STOP_BEFORE

if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "this is a job for Slurm; submit it: sbatch $0 (without Slurm: deepspeed, torchrun or mpirun, see docs/cluster.md)" >&2
    exit 2
fi
declare -a container more
# Words, which may be quoted.
eval "container=($CONTAINER) more=($SRUN)" || { echo "CONTAINER='$CONTAINER' or SRUN='$SRUN': is no line that a shell can read" >&2; exit 2; }
# Found from wherever the job was submitted, before anything of the same name there.
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1

# A field of what Slurm says about this job.
of_job() { scontrol show job -o "$job" 2>/dev/null | grep -o " $1=[^ ]*" | head -n 1 | cut -d= -f2-; }

# Of an array's tasks one has the array's own number, which would mean all of them. A job that was submitted from within another one
# has inherited variables of that one: what Slurm itself says of this job counts.
job=${SLURM_ARRAY_JOB_ID:-none}_${SLURM_ARRAY_TASK_ID:-none}
if [ "$(scontrol show job -o "$job" 2>/dev/null | grep -o '^JobId=[0-9]*')" != "JobId=$SLURM_JOB_ID" ]; then
    unset SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID
    job=$SLURM_JOB_ID
fi
restarts=$(of_job Restarts)
export SLURM_RESTART_COUNT=${restarts:-${SLURM_RESTART_COUNT:-0}}
nodes=$SLURM_JOB_NUM_NODES
# Without --ntasks-per-node: one for each of a node's GPUs. (A job with --nodes=2-4 must be left without it: Slurm would count the
# tasks at the first start, and could never start it again on fewer nodes.)
per_node=$(of_job NtasksPerN:B:S:C)
per_node=${per_node%%:*}
[ "${per_node:-0}" -gt 0 ] || per_node=${SLURM_GPUS_ON_NODE:-$((${SLURM_NTASKS:-$nodes} / nodes))}
first=${SLURMD_NODENAME:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}     # where this script runs
# An address, because names of nodes need not resolve on other nodes.
MASTER_ADDR=$(scontrol show node "$first" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
export MASTER_ADDR=${MASTER_ADDR:-$(hostname -I | cut -d' ' -f1)}
# Before version 23.02 Slurm does not say itself when the job ends.
ends=$(date -d "$(of_job EndTime)" +%s 2>/dev/null) && export SLURM_JOB_END_TIME=${SLURM_JOB_END_TIME:-$ends}
# Where sites submit with --export=NONE, srun would start the ranks without what is set here.
export SLURM_EXPORT_ENV=ALL
# srun does not take this over from the job by itself.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# Everything is on shared storage; compute nodes often have no internet, and asking for it would take minutes.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} HF_DATASETS_OFFLINE=${HF_DATASETS_OFFLINE:-1} TRANSFORMERS_OFFLINE=${TRANSFORMERS_OFFLINE:-1}
export HF_HUB_DISABLE_TELEMETRY=1 WANDB_MODE=${WANDB_MODE:-offline} PYTHONUNBUFFERED=1

time_is_up=no cancelled=no step='' is_checked=no
# Slurm sends the first one to this script only, before the wall time; scancel and most preemptions send the second to all.
trap 'time_is_up=yes; [ -z "$step" ] || kill -s "$STOP_SIGNAL" "$step" 2>/dev/null' USR1
trap 'cancelled=yes' TERM

here() {
    if [ -n "$SRUN" ]; then     # python is perhaps in a container that srun starts
        srun --nodes=1 --ntasks=1 --nodelist="$first" "${more[@]}" "${container[@]}" "$PYTHON" -m "$@"
    else
        "${container[@]}" "$PYTHON" -m "$@"
    fi
}

# One process per task on all nodes; the exit code is the highest. srun passes the signals that it gets on to all of them.
# Where one process is lost the others end after --wait seconds. --kill-on-bad-exit would not wait: the first one to exit with
# 2 or 85 would have the others killed, and with them the message and the exit code.
everywhere() {
    if [ $time_is_up = yes ] || [ $cancelled = yes ]; then return 85; fi
    srun --nodes="$nodes" --ntasks=$((nodes * per_node)) --ntasks-per-node="$per_node" --distribution=block:block --kill-on-bad-exit=0 \
        --wait=30 "${more[@]}" "${container[@]}" "$PYTHON" -u -m "$@" &
    step=$!
    wait $step
    # A trap ends `wait` before the step does; the status of a process that has ended is kept.
    while kill -0 $step 2>/dev/null; do wait $step; done
    wait $step
    local code=$?
    step=''
    return $code
}

train() {
    local recipe=$1 ds_config=() started code failing
    [ -z "$2" ] || ds_config=(--ds_config "$2")    # replicated, it trains without DeepSpeed
    shift 2
    started=$(here launch job begin "$recipe" "${ds_config[@]}" --ranks $((nodes * per_node)) "$@")
    code=$?
    [ $code -ne 10 ] || return 0        # done already
    [ $code -eq 0 ] || exit $code
    RUN=$(answer RUN "$started") MASTER_PORT=$(answer MASTER_PORT "$started")
    if [ -z "$RUN" ]; then
        echo "python -m launch job begin printed: $started" >&2
        exit 1
    fi
    export RUN MASTER_PORT

    if [ "$PREFLIGHT" != no ] && [ $is_checked = no ]; then
        # On the first node's own disk, as the run directory may be what is wrong; what srun puts into a container has another /tmp.
        failing=${TMPDIR:-/tmp}/failing-$SLURM_JOB_ID
        [ -z "$SRUN" ] || failing=$RUN/slurm/failing-$SLURM_JOB_ID
        everywhere launch preflight "$recipe" "${ds_config[@]}" --failing "$failing" --limit "$PREFLIGHT_LIMIT" "$@"
        code=$?
        if [ "$PREFLIGHT" = only ] || [ $code -ne 0 ] || [ $time_is_up = yes ] || [ $cancelled = yes ]; then
            finish $code --preflight --failing "$failing"
        fi
        rm -f "$failing"
        is_checked=yes
    fi
    # The run knows the end of the job, too, and would stop by itself: the signal must come first.
    everywhere training.main "${ds_config[@]}" --recipe "$recipe" --train.stop_before "$STOP_BEFORE" "$@"
    code=$?
    [ $code -ne 0 ] || { here launch job end "$RUN" --code 0; return 0; }
    finish $code
}

# The value of NAME=value among lines, which srun may have labelled and a container may have added to.
answer() { sed -n "s/^\( *[0-9]*: \)\{0,1\}$1=//p" <<<"$2" | tail -n 1; }

# finish CODE [option ...]: say and record why it ended, requeue the job where that helps, and exit.
finish() {
    local code=$1 verdict excluded
    shift
    # Healthy nodes, but no training: what waits for a success must not start.
    if [ "$code" -eq 0 ] && [ "$PREFLIGHT" != only ]; then code=85; fi
    [ $time_is_up = no ] || set -- "$@" --time-is-up
    [ $cancelled = no ] || set -- "$@" --cancelled
    case $(of_job PreemptTime) in ''|None|Unknown|'(null)') ;; *) set -- "$@" --preempted ;; esac
    here launch job end "$RUN" --code "$code" "$@"
    verdict=$?
    case $verdict in
        0) ;;
        75) requeue "$code" ;;
        76)
            excluded=$(of_job ExcNodeList | grep -v '(null)')
            requeue "$code" "${excluded:+$excluded,}$(cat "$RUN/slurm/excluded-$SLURM_JOB_ID")"
            ;;
        *)  # It could not be decided; what is saved and was not asked to end goes on.
            if [ "$code" -eq 85 ] && [ $time_is_up = yes ] && [ $cancelled = no ] && [ "$SLURM_RESTART_COUNT" -lt "$MAX_REQUEUES" ]; then
                requeue "$code"
            fi
            ;;
    esac
    exit "$code"
}

# requeue CODE [NODES]: have Slurm start this job again, not on NODES.
requeue() {
    trap '' TERM                        # Slurm ends this script once the job is requeued
    if [ -z "${2:-}" ]; then
        ask requeue "$job" && exit "$1"
    else                                # nodes can be excluded from a job that waits only
        if ask requeuehold "$job"; then
            ask update "JobId=$job" "ExcNodeList=$2" || echo "could not exclude $2: $refusal"
            ask release "$job" || echo "the job is held: scontrol release $job"
            exit "$1"
        fi
    fi
    here launch job refused "$RUN" --code "$1" --reason "$refusal"
}

# ask scontrol, several times: its controller may be busy, or being restarted.
ask() {
    local pause
    for pause in 0 2 5 10 20; do
        sleep $pause
        refusal=$(scontrol "$@" 2>&1) && return 0
    done
    return 1
}

cell() {
    local sweep=$1 text lines
    text=$(here launch sweep "$sweep" --cell "$SLURM_ARRAY_TASK_ID") || exit
    mapfile -t lines <<<"$text"
    train "${lines[@]}"
}

score() {
    local run=$1 step_number=$2 model scratch
    shift 2
    [ $# -gt 0 ] || set -- --suite forgetting --suite learning-code
    MASTER_PORT=$((12000 + SLURM_JOB_ID % 20000))
    export MASTER_PORT
    if [ "$step_number" = last ]; then
        step_number=$(find "$run/checkpoints" -mindepth 1 -maxdepth 1 -name '[0-9]*' -printf '%f\n' | sort -n | tail -n 1)
        [ -n "$step_number" ] || { echo "$run: has no checkpoint to score" >&2; exit 2; }
    fi
    if [ "$step_number" = 0 ]; then
        model=$(here launch job base "$run") || exit
    else
        # The model of the checkpoint, as transformers reads it; an adapter is added to its base. On the node's own disk.
        scratch=$(mktemp -d "${TMPDIR:-/tmp}/eval-$SLURM_JOB_ID.XXXXXX") || exit 1
        # shellcheck disable=SC2064  # its name as it is now
        trap "rm -rf '$scratch'" EXIT
        model=$scratch/model
        here training.checkpoint export "$run/checkpoints/$step_number" --format model --out "$model" || exit
    fi
    everywhere evals run "$model" --run "$run" --step "$step_number" --data "$EVAL_DATA" --dtype "$DTYPE" --batch-tokens "$BATCH_TOKENS" "$@"
}
