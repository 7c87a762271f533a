# shellcheck shell=bash disable=SC2154  # `python`, `wrapper`, `step_options` and `nodes` are launch.sh's
# What the scripts around training share: finding the tools, and starting one on a single task. Sourced after job.sh.

# Sets `code_folder`, which holds tools/ and examples/, and puts it before an installed package.
find_code() { # the folder of these scripts
    code_folder=$(cd "$1/.." && pwd)
    export PYTHONPATH=$code_folder${PYTHONPATH:+:$PYTHONPATH}
}

# Sets `launch`: a command on one task of the first node, with all of its cores.
single_command() {
    launch=(srun --nodes=1 --ntasks=1 --mpi=none --cpu-bind=none "${step_options[@]}" "${wrapper[@]}" "$@")
}

# Run `launch`, and only show it under DRY_RUN=1. A step that was told to stop and finished nonetheless leaves what comes
# after it to the next attempt.
run_step() {
    if [ "${DRY_RUN:-0}" = 1 ]; then
        printf '%q ' "${launch[@]}"
        echo
        code=0
        return
    fi
    local COMPETE_LAUNCHER=$COMPETE_LAUNCHER
    [ "${launch[0]}" != srun ] || COMPETE_LAUNCHER=srun # the stop signal then goes through Slurm
    trap on_stop TERM # an attempt of two steps: the end of the first has switched the signal off
    run_attempt "${launch[@]}"
    [ "$code" != 0 ] || [ -z "$stopping" ] || code=75
}

# The end of a script: of the attempt, unless nothing was run.
finish() {
    [ "${DRY_RUN:-0}" = 1 ] || end_attempt
}
