# shellcheck shell=bash disable=SC2154  # `nodes`, `work_folder` and the settings are job.sh's
# How a job's ranks get their software, and how they are started. Sourced by job.sh.
#
# COMPETE_SOFTWARE  venv: a virtual environment on a shared file system; pyxis: srun --container-image; apptainer
# COMPETE_LAUNCHER  torchrun: one task a node, whose agents meet at the first node; srun: one task a rank; mpirun

# Sets `python`, `step_options` (of srun) and `wrapper` (goes before a command).
prepare_software() {
    step_options=() wrapper=() python=python3
    case $COMPETE_SOFTWARE in
    venv)
        python=${COMPETE_VENV:-$work_folder/.venv}/bin/python
        [ -x "$python" ] || refuse "COMPETE_VENV=${COMPETE_VENV:-$work_folder/.venv}: no bin/python there on ${SLURMD_NODENAME:-this node}; create it on a file system that all nodes see"
        ;;
    pyxis)
        need_image
        step_options=(--container-image="$COMPETE_IMAGE" --container-mounts="$(mounts)" --container-workdir="$work_folder"
            --container-env="$(container_variables)")
        ;;
    apptainer)
        need_image
        wrapper=(apptainer exec --nv --bind "$(mounts)" --pwd "$work_folder" --env "PYTHONPATH=${PYTHONPATH:-}" "$COMPETE_IMAGE")
        ;;
    *) refuse "COMPETE_SOFTWARE=$COMPETE_SOFTWARE: choose one of venv, pyxis, apptainer" ;;
    esac
}

need_image() {
    [ -n "${COMPETE_IMAGE:-}" ] || refuse "COMPETE_SOFTWARE=$COMPETE_SOFTWARE needs COMPETE_IMAGE, the container image"
}

# COMPETE_MOUNTS, the run folder and the folder that relative paths begin at.
mounts() {
    echo "${COMPETE_MOUNTS:+$COMPETE_MOUNTS,}$COMPETE_RUN:$COMPETE_RUN,$work_folder:$work_folder"
}

# Variables that go before the image's own: where the code is, and what cluster.env says about the network.
container_variables() {
    {
        printf "PYTHONPATH\nPYTHONSAFEPATH\n"
        sed -nE 's/^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)=.*/\2/p' \
            "${settings_file:-/dev/null}" "${COMPETE_VARIABLES:-/dev/null}"
    } |
        grep -v '^COMPETE_' | awk '!seen[$0]++' | paste -sd,
}

# Sets `launch`: the trainer on all nodes. Arguments: the recipe and what overrides it.
training_command() {
    local recipe=$1 trainer
    shift
    trainer=("$python" -m megatron_compete pretrain --recipe "$recipe" "$@")
    [ "$COMPETE_LAUNCHER" = torchrun ] || trainer+=(--launcher "$COMPETE_LAUNCHER")
    case $COMPETE_LAUNCHER in
    torchrun)
        launch=(srun --ntasks="${#nodes[@]}" --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1
            "${step_options[@]}" "${wrapper[@]}" "${trainer[@]}"
            --nnodes "${#nodes[@]}" --nproc-per-node "$COMPETE_TASKS_PER_NODE"
            --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID-$COMPETE_ATTEMPT" --rdzv-endpoint "${nodes[0]}:$(rendezvous_port)")
        ;;
    srun)
        need_tasks
        launch=(srun --ntasks="$(ranks)" --ntasks-per-node="$COMPETE_TASKS_PER_NODE" --kill-on-bad-exit=1)
        if [ -n "${COMPETE_CPUS_PER_TASK:-}" ]; then launch+=(--cpus-per-task="$COMPETE_CPUS_PER_TASK"); else launch+=(--cpu-bind=none); fi
        launch+=(${COMPETE_MPI:+--mpi="$COMPETE_MPI"} "${step_options[@]}" "${wrapper[@]}" "${trainer[@]}")
        ;;
    mpirun) mpirun_command "$(ranks)" "${trainer[@]}" ;;
    *) refuse "COMPETE_LAUNCHER=$COMPETE_LAUNCHER: choose one of torchrun, srun, mpirun" ;;
    esac
}

ranks() { echo "$((${#nodes[@]} * COMPETE_TASKS_PER_NODE))"; }

# Another port for each attempt, so that a process which is slow to leave does not hold it.
rendezvous_port() { echo "$((20000 + (SLURM_JOB_ID * 16 + COMPETE_ATTEMPT % 16) % 20000))"; }

# The allocation must have a task for every rank, or Slurm refuses the step with a riddle.
need_tasks() {
    if [ "${SLURM_NTASKS_PER_NODE:-1}" -lt "$COMPETE_TASKS_PER_NODE" ]; then
        refuse "COMPETE_LAUNCHER=$COMPETE_LAUNCHER starts $COMPETE_TASKS_PER_NODE tasks a node, the job has ${SLURM_NTASKS_PER_NODE:-1}: submit with --ntasks-per-node=$COMPETE_TASKS_PER_NODE"
    fi
}

# Sets `launch`: a command under mpirun. Both MPICH's and Open MPI's take the nodes from Slurm and start their helpers by srun.
mpirun_command() { # ranks, command...
    local count=$1 mpirun=mpirun
    shift
    if [ "$COMPETE_SOFTWARE" = pyxis ]; then
        refuse "COMPETE_LAUNCHER=mpirun cannot start pyxis containers: set COMPETE_LAUNCHER=srun, and COMPETE_MPI=pmix where MPI is needed"
    fi
    need_tasks
    if [ "$COMPETE_SOFTWARE" = venv ] && [ -x "${python%/*}/mpirun" ]; then mpirun=${python%/*}/mpirun; fi
    # Open MPI kills its ranks a second after it passed SIGTERM on; they need time for a checkpoint.
    export OMPI_MCA_odls_base_sigkill_timeout=$COMPETE_SIGNAL_SECONDS PRTE_MCA_odls_base_sigkill_timeout=$COMPETE_SIGNAL_SECONDS
    launch=("$mpirun" -n "$count" bash "${BASH_SOURCE[0]%/*}/mpi_rank.sh" "${wrapper[@]}" "$@")
}
