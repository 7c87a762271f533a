# shellcheck shell=bash
# The life of one job: attempts, the stop signal, requeueing, bounded retries, nodes that are left out.
#
# Sourced by the batch scripts of this folder. A host needs Slurm's commands, bash and coreutils, nothing else; the
# ranks' software may be in a container. A script calls, in this order:
#   load_settings              COMPETE_RUN, cluster.env and defaults into the environment
#   begin_attempt              leaves with 0 where the run is finished; sets COMPETE_ATTEMPT
#   prepare_software           (launch.sh) sets `python`, and what goes before a command
#   run_attempt COMMAND...     runs it under the stop signal; sets `code`
#   end_attempt                writes the attempt down, and finishes, requeues or gives up; does not return
#
# Exit codes of a command: 0 finished, 2 bad input, 75 stopped and to be continued, anything else a failure.

# shellcheck source=slurm/launch.sh
. "${BASH_SOURCE[0]%/*}/launch.sh"
# shellcheck source=slurm/outcome.sh
. "${BASH_SOURCE[0]%/*}/outcome.sh"
# shellcheck source=slurm/requeue.sh
. "${BASH_SOURCE[0]%/*}/requeue.sh"
# shellcheck source=slurm/report.sh
. "${BASH_SOURCE[0]%/*}/report.sh"

say() { echo "megatron-compete: $*"; }

refuse() {
    echo "error: $*" >&2
    exit 2
}

load_settings() {
    [ -n "${SLURM_JOB_ID:-}" ] || refuse "SLURM_JOB_ID is not set: this is a batch script, submit it with sbatch"
    work_folder=$PWD
    unset COMPETE_VARIABLES
    COMPETE_RUN=${COMPETE_RUN:-${SLURM_SUBMIT_DIR:-$PWD}/runs/$SLURM_JOB_ID}
    local file
    for file in "$COMPETE_RUN/cluster.env" "${COMPETE_CLUSTER:-}" "${SLURM_SUBMIT_DIR:-$PWD}/cluster.env"; do
        if [ -f "$file" ]; then
            settings_file=$file
            set -a
            # shellcheck source=/dev/null
            . "$file"
            set +a
            break
        fi
    done
    [ -z "${COMPETE_VARIABLES:-}" ] || load_variables "$settings_file"
    COMPETE_SOFTWARE=${COMPETE_SOFTWARE:-venv}
    COMPETE_LAUNCHER=${COMPETE_LAUNCHER:-torchrun}
    COMPETE_MAX_FAILURES=${COMPETE_MAX_FAILURES:-3}
    COMPETE_BACKOFF_SECONDS=${COMPETE_BACKOFF_SECONDS:-30}
    COMPETE_NODE_FAILURES=${COMPETE_NODE_FAILURES:-2}
    COMPETE_SIGNAL_SECONDS=${COMPETE_SIGNAL_SECONDS:-300}
    COMPETE_TASKS_PER_NODE=${COMPETE_TASKS_PER_NODE:-${COMPETE_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}}
    if [ "$COMPETE_TASKS_PER_NODE" -lt 1 ]; then
        refuse "how many ranks a node has is not known: set COMPETE_TASKS_PER_NODE in cluster.env, or ask for GPUs with sbatch --gpus-per-node"
    fi
    # Without PYTHONSAFEPATH, `python -m` looks in the present folder before PYTHONPATH, and a job that was submitted from a
    # checkout would run that instead of its snapshot.
    export COMPETE_RUN COMPETE_ATTEMPT PYTHONSAFEPATH=1
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
}

# A run folder names the file with the ranks' variables, tokens and keys among them, instead of holding them. What its own
# cluster.env says (a chain's section may) goes over that file.
load_variables() { # the run folder's cluster.env
    if [ ! -r "$COMPETE_VARIABLES" ]; then
        refuse "COMPETE_VARIABLES=$COMPETE_VARIABLES, which the job was submitted with, cannot be read on ${SLURMD_NODENAME:-this node}: keep it on a file system that all nodes see"
    fi
    set -a
    # shellcheck source=/dev/null
    . <(grep -vE '^[[:space:]]*(export[[:space:]]+)?COMPETE_' "$COMPETE_VARIABLES")
    # shellcheck source=/dev/null
    . "$1"
    set +a
}

# --- attempts: attempts.tsv holds those that are over, attempt.running the present one -------------------------------

begin_attempt() {
    if [ -e "$COMPETE_RUN/finished" ]; then
        say "$COMPETE_RUN is finished: nothing to do (remove $COMPETE_RUN/finished to train on)"
        exit 0
    fi
    COMPETE_ATTEMPT=$(number_of_attempts)
    [ "${DRY_RUN:-0}" = 1 ] && return
    mkdir -p "$COMPETE_RUN"/{logs,outcomes,failures}
    record_lost_attempt
    COMPETE_ATTEMPT=$(number_of_attempts)
    stopping='' late='' launcher=''
    trap on_stop TERM
    begin=$(date +%s)
    printf '%s\t%s\t%s\n' "$SLURM_JOB_ID" "$begin" "$SLURM_JOB_NODELIST" >"$COMPETE_RUN/attempt.running"
    say "attempt $COMPETE_ATTEMPT on $SLURM_JOB_NODELIST (job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0})"
}

number_of_attempts() {
    if [ -f "$COMPETE_RUN/attempts.tsv" ]; then wc -l <"$COMPETE_RUN/attempts.tsv"; else echo 0; fi
}

# An attempt whose batch script was killed could not write itself down: its node died, or Slurm took the nodes away.
record_lost_attempt() {
    [ -f "$COMPETE_RUN/attempt.running" ] || return 0
    local job begun on outcome reason
    IFS=$'\t' read -r job begun on <"$COMPETE_RUN/attempt.running"
    if [ "$job" != "$SLURM_JOB_ID" ] && has_nodes "$job"; then
        refuse "job $job is running in $COMPETE_RUN: wait for it, or scancel it"
    fi
    outcome=$(head -n 1 "$COMPETE_RUN/outcomes/$COMPETE_ATTEMPT" 2>/dev/null || echo lost)
    reason="its batch script was killed: a node died, or Slurm took its nodes away"
    append_attempt "$job" "$begun" "$(last_sign "$begun")" "$on" "$outcome" - - "$reason"
    say "attempt $((COMPETE_ATTEMPT)) on $on is over: $reason"
}

# Whether another job is still on its nodes. Where Slurm does not answer, it is asked for 10 minutes, and then nobody knows.
has_nodes() { # job
    local said
    for _ in {1..120}; do
        if said=$(squeue -h -j "$1" -t RUNNING,SUSPENDED -o %A 2>/dev/null); then
            [ "$said" = "$1" ]
            return
        fi
        said=$(squeue -h -j "$1" 2>&1 >/dev/null || true)
        [[ $said != *"Invalid job id"* ]] || return 1 # long over
        sleep 5
    done
    refuse "job $1 began in $COMPETE_RUN, and whether it is over cannot be told ($said): submit again once squeue answers"
}

# When the lost attempt was last seen alive, epoch seconds.
last_sign() {
    local seen
    seen=$(stat -c %Y "$COMPETE_RUN/progress.json" 2>/dev/null || echo 0)
    if [ "$seen" -gt "$1" ]; then echo "$seen"; else echo "$1"; fi
}

append_attempt() { # job, begin, end, nodes, outcome, exit code, failed node, reason
    local reason
    reason=$(tr -s '\t\n' ' ' <<<"$8")
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$COMPETE_ATTEMPT" "${@:1:7}" "${reason% }" >>"$COMPETE_RUN/attempts.tsv"
    rm -f "$COMPETE_RUN/attempt.running"
}

# --- running: the stop signal reaches this shell alone (--signal=B:TERM@...), or everything when Slurm requeues --------

run_attempt() {
    if [ -n "$stopping" ]; then # told to stop before anything was started
        code=75
        return
    fi
    trap on_deadline USR1
    report_earlier_attempts
    local errors listener
    exec {errors}> >(keep_slurm_errors "$COMPETE_RUN/srun.errors")
    listener=$!
    "$@" 2>&"$errors" &
    launcher=$!
    exec {errors}>&-
    wait_for "$launcher"
    # A stray process may hold the other end; Slurm ends it with the job.
    for _ in {1..50}; do
        kill -0 "$listener" 2>/dev/null || break
        sleep 0.1
    done
    trap '' TERM USR1
    [ -z "${alarm:-}" ] || kill "$alarm" 2>/dev/null || true
}

# Pass standard error on, and keep what srun itself says of failed tasks: its first line names the first that failed.
keep_slurm_errors() {
    trap '' TERM
    : >"$1"
    local line
    while IFS= read -r line || [ -n "$line" ]; do
        printf '%s\n' "$line" >&2
        case $line in "srun: error: "*) printf '%s\n' "$line" >>"$1" ;; esac
    done
}

# A trap interrupts `wait`, with a code above 128 that is not the command's.
wait_for() {
    while :; do
        interrupted=''
        code=0
        wait "$1" || code=$?
        [ -n "$interrupted" ] || break
    done
}

on_stop() {
    interrupted=1
    [ -z "$stopping" ] || return 0
    stopping=1
    say "told to stop: the ranks save a checkpoint and leave"
    [ -n "$launcher" ] || return 0
    is_running || return 0 # Slurm has signalled everything itself; scancel would go on trying for a minute
    if [ "$COMPETE_LAUNCHER" = mpirun ]; then
        kill -TERM "$launcher" 2>/dev/null || true # some of its ranks are not in a step; it passes the signal on
    else
        timeout 10 scancel --signal=TERM "$SLURM_JOB_ID" 2>/dev/null || true # the steps, not this shell
    fi
    watch_deadline
}

# Slurm ends a job at its limit for good. What has not stopped 15 seconds before that is ended here, and requeued.
watch_deadline() {
    local limit seconds
    limit=$(epoch "$(job_field EndTime)")
    [ "$limit" -gt 0 ] || return 0
    seconds=$((limit - $(date +%s) - 15))
    (
        trap - TERM USR1
        sleep "$((seconds > 1 ? seconds : 1))"
        kill -USR1 $$
    ) &
    alarm=$!
}

on_deadline() {
    interrupted=1
    late=1
    say "the ranks are still there at the time limit: ending them"
    kill -TERM "$launcher" 2>/dev/null || true # srun ends its step at once
}

# --- the end of an attempt ---------------------------------------------------------------------------------------------

end_attempt() {
    set +e # whatever cannot be written down, the job must be requeued
    local outcome reason node=- end
    end=$(date +%s)
    outcome=$(attempt_outcome)
    reason=$(attempt_reason "$outcome")
    [ "$outcome" != failed ] || [ -n "$late" ] || node=$(failed_node)
    append_attempt "$SLURM_JOB_ID" "$begin" "$end" "$SLURM_JOB_NODELIST" "$outcome" "$code" "$node" "$reason"
    case $outcome in
    finished)
        touch "$COMPETE_RUN/finished"
        say "finished"
        report_at_the_end
        exit 0
        ;;
    refused)
        say "stopped for good, because trying again cannot help: $reason"
        report_at_the_end
        exit 2
        ;;
    esac
    await_slurm
    if ! is_running && ! is_timed_out; then
        say "attempt $COMPETE_ATTEMPT $outcome; Slurm has requeued or cancelled the job itself"
        exit "$code"
    fi
    count_attempt "$outcome"
    if [ "$retries" -ge "$COMPETE_MAX_FAILURES" ] && [ "$retries" -gt 0 ]; then
        say "gave up after $retries attempts in a row without a new checkpoint (COMPETE_MAX_FAILURES=$COMPETE_MAX_FAILURES); the last one: $reason"
        say "all attempts: $COMPETE_RUN/attempts.tsv; once fixed, sbatch $COMPETE_RUN/submit.sbatch goes on"
        rm -f "$COMPETE_RUN/retries"
        report_at_the_end
        exit 1
    fi
    say "attempt $COMPETE_ATTEMPT $outcome: $reason"
    requeue "$(backoff)" "$(nodes_to_exclude)"
}
