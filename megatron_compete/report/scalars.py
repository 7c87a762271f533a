"""A run's TensorBoard scalars."""

from pathlib import Path

from megatron_compete.errors import CompeteError

Scalars = dict[str, dict[int, float]]
"""{name: {iteration: value}}"""


def read_scalars(folder: Path) -> Scalars:
    """All scalars under a TensorBoard folder; of a resumed run, the later file's value counts.

    Raises:
        CompeteError: there are none.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    if folder.is_dir():
        events.Reload()
    scalars = {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}
    if not scalars:
        raise CompeteError(f"no TensorBoard scalars in {folder}: give the folder that --tensorboard-dir named")
    return scalars
