"""How many ranks each kind of parallelism has, and who they are."""

import argparse
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from megatron.core.parallel_state import RankGenerator
from numpy.typing import NDArray


@dataclass(frozen=True)
class ParallelSizes:
    """Sizes of Megatron's groups."""

    world: int
    tp: int
    pp: int
    vp: int
    """Model chunks of a stage; 1 without interleaving."""
    cp: int
    ep: int
    etp: int
    order: str = "tp-cp-ep-dp-pp"
    """Megatron's order of ranks, fastest first (`initialize_model_parallel`)."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> "ParallelSizes":
        """From validated arguments."""
        return cls(
            world=args.world_size,
            tp=args.tensor_model_parallel_size,
            pp=args.pipeline_model_parallel_size,
            vp=args.virtual_pipeline_model_parallel_size or 1,
            cp=args.context_parallel_size,
            ep=args.expert_model_parallel_size,
            etp=args.expert_tensor_parallel_size,
            order="tp-cp-ep-pp-dp" if args.use_tp_pp_dp_mapping else "tp-cp-ep-dp-pp",
        )

    @property
    def dp(self) -> int:
        """Data parallel size."""
        return self.world // (self.tp * self.pp * self.cp)

    @property
    def edp(self) -> int:
        """Data parallel size of the experts."""
        return self.world // (self.etp * self.ep * self.pp)

    @cached_property
    def _dense(self) -> RankGenerator:
        return RankGenerator(tp=self.tp, ep=1, dp=self.dp, pp=self.pp, cp=self.cp, order=self.order)

    @cached_property
    def _expert(self) -> RankGenerator:
        return RankGenerator(tp=self.etp, ep=self.ep, dp=self.edp, pp=self.pp, cp=1, order=self.order)

    def groups(self, name: str) -> NDArray[np.int64]:
        """Ranks of every group of a kind, [groups, size], from Megatron's own generator.

        Args:
            name: tp, cp, dp-cp, pp; etp, ep, tp-ep (all ranks of a layer's experts) or edp.
        """
        expert = {"etp": "tp", "ep": "ep", "tp-ep": "tp-ep", "edp": "dp"}
        ranks = self._expert.get_ranks(expert[name]) if name in expert else self._dense.get_ranks(name)
        return np.array(ranks, dtype=np.int64)
