"""A run's TensorBoard scalars."""

from pathlib import Path

from megatron_compete.common.errors import CompeteError

Scalars = dict[str, dict[int, float]]
"""{name: {iteration: value}}"""


def read_scalars(folder: Path) -> Scalars:
    """All scalars under a TensorBoard folder; of a resumed run, the later file's value counts.

    Raises:
        CompeteError: there are none.
    """
    scalars = logged_scalars(folder)
    if not scalars:
        raise CompeteError(f"no TensorBoard scalars in {folder}: give the folder that --tensorboard-dir named")
    return scalars


def logged_scalars(folder: Path) -> Scalars:
    """The same of a run that may have logged none: it can be shorter than `--tensorboard-log-interval`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    if folder.is_dir():
        events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}
