"""How a rank leaves.

leave.py    exit codes and outcomes; the stop signal; which rank says what
exits.py    which of Megatron's own exits was taken, and whether it was asked for
"""
