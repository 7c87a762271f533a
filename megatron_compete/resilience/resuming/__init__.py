"""Going on from a checkpoint.

choice.py         which checkpoint: the tracker's if it is whole, else the newest whole one
saved_run.py      what it says of the run that saved it, and loading under other learning rates
changes.py        arguments that may change, and those that may not
learning_rate.py  whether two courses of the learning rate are the same from here on
router.py         another router is refused
schedule.py       one competition schedule on all ranks, and the checkpoint's after a resume
optimizer.py      optimizer state in another expert parallel layout
event_log.py      TensorBoard shows each step once
"""
