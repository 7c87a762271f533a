"""A student that begins from another one's weights, with more experts than it had: upcycling and expansion.

Experts and router rows beyond the ones that are there are copies of these in turn, with noise if asked for, or random as
in a student from scratch. Copies of one expert under a random router answer alike; they have one and the same utility, so
that the dense gradient of the router is zero until something else has parted them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_compete.common.errors import CompeteError

COPIES, RANDOM = "copies", "random"
GROWTH = (COPIES, RANDOM)

ROUTER = "router.weight"
EXPERTS = ("fc1", "fc2")
Weights = dict[str, Tensor]
"""`router.weight` [E, H], `fc1` [E, F, H], `fc2` [E, H, F]."""


def save_weights(weights: Weights, path: Path) -> None:
    """Write a student's weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: one.detach().cpu().clone() for name, one in weights.items()}, path)


def read_weights(path: str) -> Weights:
    """Weights that `save_weights` wrote.

    Raises:
        CompeteError: there is no such file, or it holds something else.
    """
    try:
        found: Any = torch.load(path, weights_only=True)
    except Exception as error:
        raise CompeteError(f"--initial {path} cannot be read ({error}): give a file that --save wrote") from None
    if not isinstance(found, Mapping) or set(found) != {ROUTER, *EXPERTS}:
        raise CompeteError(f"--initial {path} holds no student's weights: give a file that --save wrote")
    return dict(found)


def grown(
    trained: Weights, fresh: Weights, experts: str | None, router: str | None, noise: float, random: torch.Generator
) -> Weights:
    """The trained weights, filled up to the size of fresh ones.

    Args:
        trained: of --initial.
        fresh: of a student from scratch, of the size that is wanted.
        experts, router: what is added, of `GROWTH`; None where nothing is.
        noise: of copies: standard deviation relative to that of the tensor they are of.
    Raises:
        CompeteError: sizes that do not fit, or flags that are missing or have no effect.
    """
    before, after = len(trained[ROUTER]), len(fresh[ROUTER])
    for name, one in trained.items():
        if one.shape[1:] != fresh[name].shape[1:]:
            raise CompeteError(
                f"--initial has {name} of size {tuple(one.shape[1:])}, and this student {tuple(fresh[name].shape[1:])}: "
                "give its --hidden-size and --moe-ffn-hidden-size"
            )
    if after < before:
        raise CompeteError(f"--num-experts {after} is below the {before} experts of --initial: give as many or more")
    if after == before and (experts or router or noise):
        raise CompeteError(f"--grow-* changes nothing, for --initial has the {after} experts of --num-experts")
    if after > before and not (experts and router):
        raise CompeteError(f"--initial has {before} experts of {after}: say by --grow-experts and --grow-router what the others are")  # fmt: skip
    if noise and COPIES not in (experts, router):
        raise CompeteError(f"--grow-noise {noise:g} is of copies, and there are none: leave it out")
    how = {ROUTER: router} | dict.fromkeys(EXPERTS, experts)
    return {name: _filled(trained[name], fresh[name], how[name], noise, random) for name in (ROUTER, *EXPERTS)}


def _filled(trained: Tensor, fresh: Tensor, how: str | None, noise: float, random: torch.Generator) -> Tensor:
    count, size = len(fresh), len(trained)
    if how != COPIES:
        return torch.cat([trained, fresh[size:]])
    copies = trained[torch.arange(size, count) % size]
    return torch.cat([trained, copies + noise * trained.std() * torch.randn(copies.shape, generator=random)])
