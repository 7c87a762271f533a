"""Competition in Megatron-Bridge, NVIDIA's trainer of recipes (PyPI `megatron-bridge`).

recipe.py       the call: a recipe or a provider competes
layers.py       what stands in its layer spec
checkpoints.py  the schedule in its checkpoints; where its trainer shows the step
"""

from megatron_compete.bridge.recipe import compete, competition_of

__all__ = ["compete", "competition_of"]
