"""A rank that stands still.

watchdog.py   counts microbatches, asks all ranks when it has seen none for too long
verdict.py    who is to blame, from what they answer
"""
