# shellcheck shell=bash disable=SC2154  # `code`, `late`, `stopping` and `nodes` are job.sh's
# How an attempt ended, why, and on which node. Sourced by job.sh.

# One word. srun's own code is the largest of all tasks', some of which it killed itself, so the trainer's word comes first,
# then the code of the task that was the first to end badly. What is to say itself that it has finished (`must_say_finished`)
# has not where it has not said so.
attempt_outcome() {
    local file=$COMPETE_RUN/outcomes/$COMPETE_ATTEMPT first
    if [ -s "$file" ]; then
        head -n 1 "$file"
    else
        first=$(sed -nE '1s/.*: Exited with exit code ([0-9]+)$/\1/p' "$COMPETE_RUN/srun.errors" 2>/dev/null)
        case ${first:-$code} in
        0) if [ -n "${must_say_finished:-}" ]; then echo failed; else echo finished; fi ;;
        2) echo refused ;;
        75) echo stopped ;;
        *) if [ -z "$late" ] && [ -n "$stopping" ] && [ "$code" = 143 ]; then echo stopped; else echo failed; fi ;;
        esac
    fi
}

attempt_reason() { # outcome
    local said
    said=$(sed -n '2,$p' "$COMPETE_RUN/outcomes/$COMPETE_ATTEMPT" 2>/dev/null | head -n 3)
    if [ -n "$said" ]; then
        echo "$said"
    elif [ "$1" = stopped ]; then
        echo "told to stop"
    elif [ "$1" != failed ]; then
        [ "$1" = finished ] && echo - || echo "bad input, see the log"
    elif [ -n "$late" ]; then
        echo "no checkpoint within $COMPETE_SIGNAL_SECONDS s before the time limit: raise COMPETE_SIGNAL_SECONDS"
    else
        failure_reason
    fi
}

# The record of the failure that came first: what is printed, and whose node is counted.
#
# Ranks that were well and left because of another (`follows`) count only where nothing else is recorded. The earliest counts,
# but a rank that was killed or crashed goes before those that lost their peer: the clock of its host may be a little behind.
first_failure() {
    local files=("$COMPETE_RUN/failures/$COMPETE_ATTEMPT"-*.json)
    [ -f "${files[0]}" ] || return 0
    awk -v same_incident=10 -v deadly=" -4 -7 -8 -9 -11 " ' # SIGILL, SIGBUS, SIGFPE, SIGKILL, SIGSEGV
        function number(name) { return match($0, "\"" name "\": *-?[0-9.]+") ? substr($0, RSTART + length(name) + 3, RLENGTH) + 0 : "" }
        FNR == 1 && number("time") != "" {
            time[++count] = number("time")
            is_deadly[count] = index(deadly, " " number("exit_code") " ") > 0
            follows[count] = $0 ~ /"follows": *true/
            file[count] = FILENAME
            if (!follows[count]) own = 1
        }
        function earliest(only_deadly, until,    i, found) {
            for (i = 1; i <= count; i++)
                if (!(own && follows[i]) && (!only_deadly || is_deadly[i]) && (!until || time[i] <= until) && (!found || time[i] < time[found]))
                    found = i
            return found
        }
        END {
            first = earliest(0, 0)
            killed = first ? earliest(1, time[first] + same_incident) : 0
            if (first) print file[killed ? killed : first]
        }' "${files[@]}"
}

# A scalar of a flat JSON object that we wrote ourselves, without a parser on the host. A second, plain copy of every such
# file would be more code than these lines, and older run folders have only the JSON.
json_field() { # file, name
    [ -f "$1" ] || return 0
    tr '\n' ' ' <"$1" 2>/dev/null | sed -nE 's/.*"'"$2"'" *: *("(([^"\\]|\\.)*)"|([^",} ]+)).*/\2\4/p' | sed 's/\\"/"/g'
}

failure_reason() {
    local file ended message
    file=$(first_failure)
    if [ -n "$file" ]; then
        ended=$(json_field "$file" exit_code)
        message=$(json_field "$file" message)
        case $ended in -*) ended="ended by SIG$(kill -l "${ended#-}")" ;; *) ended="exit code $ended" ;; esac
        [ "$message" = "$ended" ] || ended="$ended: $message"
        echo "rank $(json_field "$file" rank) on $(json_field "$file" host): $ended"
    elif [ -s "$COMPETE_RUN/srun.errors" ]; then
        head -n 1 "$COMPETE_RUN/srun.errors" | sed 's/^srun: error: //'
    elif [ "$code" = 0 ]; then
        echo "left with exit code 0 and did not say that it had finished"
    else
        echo "exit code $code"
    fi
}

# The node of the first failure, as Slurm calls it, or -.
failed_node() {
    local file name node
    file=$(first_failure)
    if [ -n "$file" ]; then
        name=$(json_field "$file" host)
    else # "srun: error: n2: task 1: Killed", "srun: error: Node failure on n2"
        name=$(sed -nE 's/^srun: error: (Node failure on )?([^: ]+)(:.*)?$/\2/p' "$COMPETE_RUN/srun.errors" 2>/dev/null | head -n 1)
        name=$(scontrol show hostnames "$name" 2>/dev/null | head -n 1)
    fi
    for node in "${nodes[@]}"; do
        if [ "$node" = "$name" ] || [ "$node" = "${name%%.*}" ]; then
            echo "$node"
            return
        fi
    done
    echo -
}
