"""A parallel layout, from a job's arguments alone.

facts.py    arguments as parsed, by short names
rules.py    what Megatron would refuse minutes into a job, all at once
scope.py    what the planner does not count
sizes.py    how many ranks each kind of parallelism has, and who they are
"""
