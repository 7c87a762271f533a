"""Competition routing (CompeteSMoE, arXiv 2505.13380) for mixture-of-experts pretraining on Megatron-Core.

The rooms, from the ground up. A room imports those above it in this list, never one below (`tests/test_rooms.py`):

    upstream    every symbol of Megatron, torch and Python that is replaced: one table, one mechanism
    common      errors, files that are whole or not there, YAML with lines in its errors, progress
    config      the settings of competition
    routing     the paper as pure functions on tensors
    schedule    which layers compete at which step
    moe         where routing meets Megatron's MoE layers; kernels and baseline routers
    trainers    competition for any trainer, without a trainer's global arguments
    vlm         vision-language models: vision tower, projector and decoder as one model
    data        text to datasets: tokenizers, preprocessing, inspection
    checkpoint  reading, writing and converting checkpoints; Hugging Face's families
    launch      recipes, launchers, the environment of a rank, the CPU backend, the doctor
    layout      parallel sizes and the rules that a job must meet
    resilience  what a run survives: stops, failed saves, damage, stuck ranks, another layout
    training    the trainer's entry: arguments, model, data, step
    bridge      competition in Megatron-Bridge: recipes, checkpoints, logs
    verify      comparing checkpoints and models
    plan        a job's memory, traffic and time before it runs
    cluster     run folders, Slurm jobs, chains, status
    report      scalars and pages of a run
    audit       what a checkpoint's routers and experts do, and what better routing would change
    study       grids of settings and seeds, and their tables
    cli         the command `megatron-compete`
"""

__version__ = "0.4.0"
