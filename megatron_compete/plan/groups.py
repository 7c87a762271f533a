"""How Megatron's process groups lie on the nodes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from megatron_compete.plan.job import Job


@dataclass(frozen=True)
class Group:
    """One kind of process group."""

    name: str
    size: int
    ring_share: float
    """Share of a ring's links that cross nodes."""
    peer_share: float
    """Share of a rank's peers that are on another node."""

    @property
    def across_share(self) -> float:
        """Share of what a rank sends that leaves its node: rows and scores go to peers, all else around a ring."""
        return self.peer_share if self.name == "ep" else self.ring_share


class Groups:
    """The kinds of groups of a job by `ParallelSizes.groups`'s names, each looked up once."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._known: dict[str, Group] = {}

    def __getitem__(self, name: str) -> Group:
        if name not in self._known:
            self._known[name] = _group(name, self._nodes(name))
        return self._known[name]

    @cached_property
    def stage_share(self) -> float:
        """Share of a pipeline's links that cross nodes: last stage to first is one of them under interleaving."""
        nodes_GP = self._nodes("pp")
        if nodes_GP.shape[1] == 1:
            return 0.0
        following_GP = np.roll(nodes_GP, -1, axis=1)
        crossing_GP = nodes_GP != following_GP
        return float((crossing_GP if self._job.sizes.vp > 1 else crossing_GP[:, :-1]).mean())

    @cached_property
    def ends_share(self) -> float:
        """Share of pipelines whose first and last stage are on different nodes."""
        nodes_GP = self._nodes("pp")
        return float((nodes_GP[:, 0] != nodes_GP[:, -1]).mean())

    def _nodes(self, name: str) -> NDArray[np.int64]:
        return self._job.sizes.groups(name) // self._job.gpus_per_node


def _group(name: str, nodes_GN: NDArray[np.int64]) -> Group:
    size = nodes_GN.shape[1]
    if size == 1:
        return Group(name, 1, 0.0, 0.0)
    nodes_GN = np.sort(nodes_GN, axis=1)  # NCCL's rings visit one node after the other
    ring = float((nodes_GN != np.roll(nodes_GN, 1, axis=1)).mean())
    return Group(name, size, ring, _peers_elsewhere(nodes_GN))


def _peers_elsewhere(nodes_GN: NDArray[np.int64]) -> float:
    groups, size = nodes_GN.shape
    group_and_node = nodes_GN + np.arange(groups)[:, None] * (nodes_GN.max() + 1)
    together = np.unique(group_and_node, return_counts=True)[1].astype(float)
    return float(1.0 - (together * (together - 1)).sum() / (groups * size * (size - 1)))
