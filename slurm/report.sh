# shellcheck shell=bash disable=SC2154  # the settings, `python`, `wrapper` and `step_options` are job.sh's and launch.sh's
# The page of a training run, RUN/report.html: at a job's end, and while an attempt begins that follows another one.
# Sourced by job.sh. A page must neither fail a job nor hold it up: it has a minute, at the lowest priority, only where the
# time limit is farther away, and never before a requeue. What it says goes to RUN/logs/report.log.

REPORT_SECONDS=60

write_report() {
    [ -n "${must_say_finished:-}" ] && [ -n "${python:-}" ] || return 0 # training jobs alone
    local maker=("${wrapper[@]}" "$python" -m megatron_compete report "$COMPETE_RUN")
    [ "$COMPETE_SOFTWARE" != pyxis ] || maker=(srun --nodes=1 --ntasks=1 --overlap "${step_options[@]}" "${maker[@]}")
    timeout --kill-after=5 "$REPORT_SECONDS" nice -n 19 "${maker[@]}" >"$COMPETE_RUN/logs/report.log" 2>&1 </dev/null ||
        say "the page of the run was not written, see $COMPETE_RUN/logs/report.log" || true
}

# Of the attempts before, beside the ranks that are starting. In a container of pyxis it would import the image once more.
report_earlier_attempts() {
    if [ "$COMPETE_ATTEMPT" = 0 ] || [ "$COMPETE_SOFTWARE" = pyxis ]; then return 0; fi
    write_report &
}

# At the end of a job that is not requeued. One that was told to stop may be killed at any moment, and its code would count.
report_at_the_end() {
    [ -z "$stopping" ] || return 0
    local limit
    limit=$(epoch "$(job_field EndTime)")
    if [ "$limit" -gt 0 ] && [ "$((limit - $(date +%s)))" -lt "$((REPORT_SECONDS + 30))" ]; then return 0; fi
    write_report
}
