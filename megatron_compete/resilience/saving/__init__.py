"""Saves that fail, and what is left of them.

folder.py   the --save folder before the first step: writable, and locked for this job
guard.py    around Megatron's saves: all ranks learn of a failure, and go on or stop together
causes.py   why shards could not be written, in the system's words
files.py    room for a save, what a failed one leaves, a tracker that is replaced in one step
worker.py   the process that writes beside the training: its death is the rank's
"""
