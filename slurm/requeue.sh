# shellcheck shell=bash disable=SC2154  # `nodes` is job.sh's
# Trying again: how often, when, on which nodes, and how Slurm is asked for it. Sourced by job.sh.

# Sets `retries`: attempts in a row that failed, or were stopped before their first step, since the last new checkpoint.
count_attempt() { # outcome
    local checkpoint step checkpoint_before=0 step_before=0
    retries=0
    [ ! -f "$COMPETE_RUN/retries" ] || read -r retries checkpoint_before step_before <"$COMPETE_RUN/retries"
    checkpoint=$(last_checkpoint)
    step=$(json_field "$COMPETE_RUN/progress.json" iteration)
    step=${step:-0}
    [ "$checkpoint" -le "$checkpoint_before" ] || retries=0
    if [ "$1" = failed ] || { [ "$checkpoint" -le "$checkpoint_before" ] && [ "$step" -le "$step_before" ]; }; then
        retries=$((retries + 1))
    fi
    echo "$retries $checkpoint $step" >"$COMPETE_RUN/retries"
}

# Iteration of the newest checkpoint, by Megatron's tracker or what the trainer logged last; 0 without one.
last_checkpoint() {
    local folder logged tracked
    folder=$(sed -nE 's/^ *save: *["'\'']?([^"'\'']*)["'\'']? *$/\1/p' "$COMPETE_RUN/recipe.yaml" 2>/dev/null | tail -n 1)
    tracked=$(cat "${folder:-$COMPETE_RUN/checkpoints}/latest_checkpointed_iteration.txt" 2>/dev/null || true)
    logged=$(json_field "$COMPETE_RUN/progress.json" checkpoint)
    printf '%s\n' "$tracked" "$logged" 0 | grep -xE '[0-9]+' | sort -n | tail -n 1
}

# Seconds to wait: none after a stop, doubled with every failure in a row.
backoff() {
    local seconds=$COMPETE_BACKOFF_SECONDS i
    if [ "$retries" -eq 0 ]; then
        echo 0
        return
    fi
    for ((i = 1; i < retries && seconds < 600; i++)); do seconds=$((seconds * 2)); done
    echo "$((seconds < 600 ? seconds : 600))"
}

# Nodes that were the first to fail COMPETE_NODE_FAILURES times, comma-separated, if enough others are left.
nodes_to_exclude() {
    local bad left
    bad=$(cut -f 8 "$COMPETE_RUN/attempts.tsv" | sort | uniq -c |
        awk -v limit="$COMPETE_NODE_FAILURES" '$2 != "-" && $1 >= limit { print $2 }')
    [ -n "$bad" ] || return 0
    left=$(sinfo -h -N -p "$SLURM_JOB_PARTITION" -t idle,mixed,allocated,completing -o %N | sort -u | grep -cvxF "$bad" || true)
    if [ "$left" -lt "${#nodes[@]}" ]; then
        say "$(paste -sd, <<<"$bad") failed $COMPETE_NODE_FAILURES times or more, but only $left other nodes are up in $SLURM_JOB_PARTITION: not left out" >&2
    else
        paste -sd, <<<"$bad"
    fi
}

# --- Slurm -----------------------------------------------------------------------------------------------------------

# A field of the job as Slurm knows it now.
job_field() {
    local fields
    fields=" $(scontrol show job -o "$SLURM_JOB_ID" 2>/dev/null || true)"
    [[ $fields = *" $1="* ]] || return 0
    fields=${fields#*" $1="}
    echo "${fields%% *}"
}

# Slurm's time in epoch seconds; 0 for Unknown, None and nothing.
epoch() { if [ -n "$1" ]; then date -d "$1" +%s 2>/dev/null || echo 0; else echo 0; fi; }

# Whether the job is still ours to requeue; one that Slurm requeues itself or that was cancelled is completing. It is
# SIGNALING while Slurm delivers the stop signal. Where Slurm does not answer, yes.
is_running() {
    case $(job_field JobState) in
    RUNNING | SIGNALING | RESIZING | STOPPED | SUSPENDED | '') ;;
    *) return 1 ;;
    esac
}

# Whether the job ends at its time limit, where its stop signal came too late or never; it can still be requeued then.
is_timed_out() { [ "$(job_field Reason)" = TimeLimit ] && [ "$(job_field Restarts)" = "${SLURM_RESTART_COUNT:-0}" ]; }

# Slurm's controller may be restarting, at the very moment at which the job needs it: for 10 minutes.
await_slurm() {
    for _ in {1..120}; do
        [ -z "$(job_field JobState)" ] || return 0
        sleep 5
    done
}

# Requeue under the same job id, so that jobs which wait for this one (afterok) go on waiting.
#
# What Slurm 22.05 allows to a job's own user: ExcNodeList and StartTime cannot be changed while the job runs ("no longer
# pending execution"), but from the moment of `scontrol requeue`, even while this script is still there. Until then nothing
# can start the job, because Slurm itself defers a requeued one by the life of its credential. `requeuehold` and `release`
# would also do, but a script that is killed between the two leaves the job held for ever: the SIGTERM that comes with the
# requeue reached `scontrol release` too. Hence no hold, and SIGTERM is ignored here, which commands started from here inherit.
requeue() { # delay in seconds, nodes to leave out
    trap '' TERM
    if scontrol requeue "$SLURM_JOB_ID" || { scontrol update "JobId=$SLURM_JOB_ID" Requeue=1 && scontrol requeue "$SLURM_JOB_ID"; }; then
        exclude "$2"
        delay "$1"
        say "job $SLURM_JOB_ID is requeued${2:+ without $2}"
        exit 0
    fi
    submit_again "$1" "$2"
}

exclude() { # nodes
    [ -n "$1" ] || return 0
    local list
    list=$(all_excluded "$1")
    scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$list" || say "Slurm would not leave out $1"
}

# These nodes and those that the job leaves out already.
all_excluded() {
    local before
    before=$(job_field ExcNodeList)
    { tr ',' '\n' <<<"$1"; [ "${before:-(null)}" = "(null)" ] || scontrol show hostnames "$before"; } | sort -u | paste -sd,
}

delay() { # seconds
    [ "$1" -gt 0 ] || return 0
    local eligible
    eligible=$(epoch "$(job_field EligibleTime)")
    [ "$eligible" -lt "$(($(date +%s) + $1))" ] || return 0 # Slurm's own delay is longer
    scontrol update "JobId=$SLURM_JOB_ID" "StartTime=now+$1" || say "Slurm would not wait $1 s"
}

# Where requeueing is not allowed: a new job of the same folder.
submit_again() { # delay in seconds, nodes to leave out
    local script=$COMPETE_RUN/submit.sbatch options=() id
    if [ ! -f "$script" ]; then
        say "Slurm does not requeue this job: submit it again, it goes on where it stopped"
        exit 75
    fi
    [ "$1" = 0 ] || options+=("--begin=now+$1")
    [ -z "$2" ] || options+=("--exclude=$(all_excluded "$2")")
    if ! id=$(sbatch --parsable "${options[@]}" "$script"); then
        say "Slurm neither requeues this job nor takes a new one: sbatch $script goes on where it stopped"
        exit 75
    fi
    id=${id%%;*}
    printf '{"job_id": "%s", "submitted": "%s", "kind": "%s"}\n' "$id" "$(date -u +%FT%T+0000)" \
        "$(json_field "$COMPETE_RUN/job.json" kind)" >"$COMPETE_RUN/job.json.new"
    mv "$COMPETE_RUN/job.json.new" "$COMPETE_RUN/job.json"
    say "Slurm does not requeue this job: job $id goes on with it; jobs that wait for $SLURM_JOB_ID must be made to wait for $id"
    exit 75
}
