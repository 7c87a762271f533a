#!/usr/bin/env bash
# One rank under mpirun: mpi_rank.sh COMMAND...
#
# MPICH's mpirun leaves the other ranks running when one that has not called MPI_Init fails; a death by a signal ends them
# all. So a failed command becomes one. 2 (bad input) and 75 (stopped) are what all ranks leave with, and stay as they are.
# SIGTERM goes to the command, which may get it from mpirun too, and this shell waits for it to save a checkpoint.
"$@" &
command=$!
trap 'interrupted=1; kill -TERM "$command" 2>/dev/null' TERM
while :; do
    interrupted=''
    wait "$command"
    code=$?
    [ -n "$interrupted" ] || break
done
case $code in
0 | 2 | 75) exit "$code" ;;
*) kill -KILL $$ ;;
esac
