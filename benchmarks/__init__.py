"""Measurements of one competing step against a normal one and the naive one: `python benchmarks/competition_step.py`."""
