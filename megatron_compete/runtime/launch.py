"""Starting the ranks of a job with torchrun."""

import logging
import os
import signal
import sys
import warnings

from megatron_compete.errors import USAGE_EXIT_CODE

CPU_WARNINGS = (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "Only transformer-engine",
)
"""What Megatron warns of a dozen times a rank where there is no CUDA; neither could be installed there."""


def environment_defaults() -> dict[str, str]:
    """Variables that a rank needs and that the caller's environment does not set.

    CUDA_DEVICE_MAX_CONNECTIONS=1 is Megatron's condition for tensor and context parallelism.
    """
    import torch

    defaults = {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    if not torch.cuda.is_available():
        defaults["PYTHONWARNINGS"] = ",".join(f"ignore:{message}" for message in CPU_WARNINGS)
    return {name: value for name, value in defaults.items() if name not in os.environ}


def silence_cpu_warnings() -> None:
    """Keep `CPU_WARNINGS` out of this process's output; call before Megatron is imported."""
    for message in CPU_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


class _QuietUsageErrors(logging.Filter):
    """Drops torchrun's report of ranks that ended because of bad input: rank 0 has said what is wrong."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return f"exitcode: {USAGE_EXIT_CODE})" not in message and "closing signal SIGTERM" not in message


def run_torchrun(command: list[str]) -> None:
    """Run torchrun with these arguments in this process.

    Leaves with exit code 2 and nothing more to say where all failed ranks had bad input, else with torchrun's own
    report of the first failure.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    for name in ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).addFilter(_QuietUsageErrors())
    try:
        run(parse_args(command))
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        if codes - {-signal.SIGTERM} == {USAGE_EXIT_CODE}:  # torchrun ends ranks that were a moment slower
            raise SystemExit(USAGE_EXIT_CODE) from None
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
