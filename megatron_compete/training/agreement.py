"""Ranks that decide alike: what one rank finds out, or fails at, all know.

A rank that raises alone leaves the others waiting in the next collective. So whatever only one rank can see (the
checkpoint folder, a full disk) is done between two small collectives, and all ranks raise or none does.
"""

from collections.abc import Callable
from typing import Any

import torch

from megatron_compete.errors import CompeteError


def on_rank_0[T](step: Callable[[], T]) -> T:
    """The result of `step`, which runs on rank 0 alone, on all ranks.

    Raises:
        CompeteError: on every rank, what `step` raised (an OSError with its path, too).
    """
    answer: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            answer[0] = step()
        except (CompeteError, OSError) as error:
            answer[1] = str(error)
    torch.distributed.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise CompeteError(answer[1])
    result: T = answer[0]
    return result


def problems_of_ranks(problem: str | None) -> dict[int, str]:
    """What ranks have to complain of, by rank; empty, after one reduction of one number, if none has."""
    count = torch.tensor([int(problem is not None)], device=torch.cuda.current_device())
    torch.distributed.all_reduce(count)
    if count.item() == 0:
        return {}
    problems: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(problems, problem)
    return {rank: text for rank, text in enumerate(problems) if text is not None}


def describe(problems: dict[int, str], shown: int = 3) -> str:
    """`rank 1: no space left; rank 4: ...`, ranks with the same problem together."""
    ranks_of: dict[str, list[int]] = {}
    for rank, text in problems.items():
        ranks_of.setdefault(text, []).append(rank)
    parts = [f"{_ranks(ranks)}: {text}" for text, ranks in list(ranks_of.items())[:shown]]
    return "; ".join(parts + ["..."] * (len(ranks_of) > shown))


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:4]))}" + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")
