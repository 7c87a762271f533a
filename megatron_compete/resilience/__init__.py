"""What a run survives. `docs/operations/reliability.md` has the faults, and what becomes of a run at each.

reliability.py    all of it around one run of Megatron's trainer
agreement.py      ranks decide alike: what rank 0 finds out or fails at, all know
devices.py        a node without its GPUs is told from a host without any
progress.py       progress.json and steps.jsonl of the run folder
rerun.py          a step that Megatron runs twice begins with the same running statistics
stopping/         how a rank leaves, and what its exit means
saving/           a save that fails is noticed by all ranks, and costs no older checkpoint
resuming/         which checkpoint a run goes on from, and with which other arguments
stuck_ranks/      a rank that stands still is named and ends the job
"""
