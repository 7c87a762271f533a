"""Competition for any trainer of Megatron-Core models: nothing here asks for a trainer's global arguments.

model_competition.py  the one object that a trainer holds: layers, checks, metrics, state
same_schedule.py      one schedule on all ranks, and in a resumed run

Our trainer, `--spec` in Megatron-LM's and `bridge/` in Megatron-Bridge stand on it; `examples/core_loop.py` is a loop that
has nothing but it and Megatron-Core.
"""

from megatron_compete.trainers.model_competition import ModelCompetition

__all__ = ["ModelCompetition"]
