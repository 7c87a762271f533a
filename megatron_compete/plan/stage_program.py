"""What every pipeline stage does in a step, in Megatron's order.

A program is a list of operations: a pass of one microbatch through one model chunk, the post of a transfer, and the
wait for it. It follows `megatron/core/pipeline_parallel/schedules.py`: which microbatch and chunk comes when is asked
of Megatron's own functions; where transfers are posted and waited for is what its schedules do there. A transfer that
Megatron does not overlap is a post with its wait right behind it.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from megatron.core.model_parallel_config import ModelParallelConfig

Channel = Literal["send next", "receive previous", "send previous", "receive next"]
"""One end of a transfer: activations go to the next stage, gradients to the previous one."""


class Operation(NamedTuple):
    """One operation of a stage."""

    action: Literal["forward", "backward", "post", "wait"]
    chunk: int = 0
    """Of a pass."""
    channel: Channel | None = None
    """Of a post or a wait."""
    number: int = 0
    """Of a post or a wait: how many transfers on that channel came before it."""


@dataclass(frozen=True)
class PipelineShape:
    """What decides the order of operations.

    Args:
        stages: P.
        chunks: V, model chunks of a stage; 1 is 1F1B without interleaving.
        microbatches: per step and pipeline.
        group_size: `microbatch_group_size_per_vp_stage`; at least P, used with V > 1 only.
        overlap: transfers overlap with computation (Megatron's default with V > 1, impossible without).
        overlap_flush: also in warm-up and cool-down (`--overlap-p2p-communication-warmup-flush`).
    """

    stages: int
    chunks: int
    microbatches: int
    group_size: int
    overlap: bool = True
    overlap_flush: bool = False

    @classmethod
    def of(cls, config: "ModelParallelConfig", microbatches: int) -> "PipelineShape":
        """From Megatron's settings of a model."""
        return cls(
            stages=config.pipeline_model_parallel_size,
            chunks=config.virtual_pipeline_model_parallel_size or 1,
            microbatches=microbatches,
            group_size=config.microbatch_group_size_per_vp_stage,
            overlap=config.overlap_p2p_comm,
            overlap_flush=config.overlap_p2p_comm_warmup_flush,
        )

    def program(self, stage: int) -> list[Operation]:
        """The operations of `stage` (from 0) in a step."""
        if self.stages == 1:
            return [Operation(action) for _ in range(self.microbatches) for action in ("forward", "backward")]
        if self.chunks == 1:
            return _OneForwardOneBackward(self, stage).program()
        return _Interleaved(self, stage).program()


@dataclass
class _Writer:
    """The program of one stage while it is written."""

    shape: PipelineShape
    stage: int
    operations: list[Operation] = field(default_factory=list)
    _posted: defaultdict[Channel, int] = field(default_factory=lambda: defaultdict(int))
    _handles: defaultdict[Channel, deque[int]] = field(default_factory=lambda: defaultdict(deque))

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.shape.stages - 1

    def compute(self, action: Literal["forward", "backward"], chunk: int = 0) -> None:
        self.operations.append(Operation(action, chunk))

    def post(self, *channels: Channel | None) -> None:
        """Begin transfers; None is one that this stage does not have."""
        for channel in channels:
            if channel is not None:
                self._handles[channel].append(self._begin(channel))

    def wait(self, channel: Channel, keep: int = 0) -> None:
        """Wait for the oldest transfer on `channel` that was posted and not waited for, if more than `keep` are."""
        if len(self._handles[channel]) > keep:
            self.operations.append(Operation("wait", channel=channel, number=self._handles[channel].popleft()))

    def exchange(self, *channels: Channel | None) -> None:
        """Transfers posted together and waited for at once."""
        begun = [(channel, self._begin(channel)) for channel in channels if channel is not None]
        self.operations += [Operation("wait", channel=channel, number=number) for channel, number in begun]

    def _begin(self, channel: Channel) -> int:
        number = self._posted[channel]
        self._posted[channel] += 1
        self.operations.append(Operation("post", channel=channel, number=number))
        return number


class _OneForwardOneBackward(_Writer):
    """`forward_backward_pipelining_without_interleaving`."""

    def program(self) -> list[Operation]:
        warmup = min(self.shape.stages - self.stage - 1, self.shape.microbatches)
        steady = self.shape.microbatches - warmup
        send_next: Channel | None = None if self.is_last else "send next"
        receive_next: Channel | None = None if self.is_last else "receive next"
        send_previous: Channel | None = None if self.is_first else "send previous"
        receive_previous: Channel | None = None if self.is_first else "receive previous"
        for _ in range(warmup):
            self.exchange(receive_previous)
            self.compute("forward")
            self.exchange(send_next)
        if steady:
            self.exchange(receive_previous)
        for k in range(steady):
            self.compute("forward")
            self.exchange(send_next, receive_next)
            self.compute("backward")
            self.exchange(receive_previous if k < steady - 1 else None, send_previous)
        for _ in range(warmup):
            self.exchange(receive_next)
            self.compute("backward")
            self.exchange(send_previous)
        return self.operations


class _Interleaved(_Writer):
    """`forward_backward_pipelining_with_interleaving`; k counts passes, a chunk of a microbatch each."""

    def program(self) -> list[Operation]:
        from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches, get_schedule_table

        shape = self.shape
        rank = SimpleNamespace(
            pp_group=SimpleNamespace(size=lambda: shape.stages, rank=lambda: self.stage),
            virtual_pipeline_model_parallel_size=shape.chunks,
        )
        self.total, self.all_in_warmup, self.warmup, self.steady = get_pp_rank_microbatches(
            shape.microbatches, shape.chunks, shape.group_size, p2p_communicator=rank
        )
        table = get_schedule_table(shape.microbatches, shape.chunks, shape.group_size)
        self.forward_chunks: Sequence[int] = [chunk for _, chunk in table]
        self.backward_chunks: Sequence[int] = [shape.chunks - 1 - chunk for _, chunk in table]
        self._write_warmup()
        self._write_steady()
        self._write_cooldown()
        return self.operations

    def _write_warmup(self) -> None:
        flush = self.shape.overlap_flush
        self.exchange(None if self.is_first else "receive previous")
        for k in range(self.warmup):
            receives = self._receives_previous(k) if k < self.total - 1 else None
            if flush:
                if k > 0 and not self._has_no_input(k):
                    self.wait("receive previous")
                self.post(None if self.is_first else receives)
            self.compute("forward", self.forward_chunks[k])
            enters_steady = k == self.warmup - 1 and not self.all_in_warmup
            first_gradient: Channel | None = "receive next" if enters_steady and not self.is_last else None
            if flush:
                self._post_forward(k, receives if self.is_first else None)
            else:
                self.exchange(self._sends_next(k), receives, None if self.shape.overlap else first_gradient)
            if self.shape.overlap:
                self.post(first_gradient)

    def _write_steady(self) -> None:
        for backward_k in range(self.steady):
            forward_k = backward_k + self.warmup
            receives = self._receives_previous(forward_k) if backward_k < self.steady - 1 else None
            if not self.shape.overlap:
                self.compute("forward", self.forward_chunks[forward_k])
                self.compute("backward", self.backward_chunks[backward_k])
                self.exchange(
                    self._sends_next(forward_k), receives,
                    self._sends_previous(backward_k), self._receives_next(backward_k),
                )  # fmt: skip
                continue
            if not self._has_no_input(forward_k):
                self.wait("receive previous")
            self.compute("forward", self.forward_chunks[forward_k])
            self._post_forward(forward_k, receives)
            if not self._has_no_gradient(backward_k):
                self.wait("receive next")
            self.compute("backward", self.backward_chunks[backward_k])
            self._post_backward(backward_k, self._receives_next(backward_k))

    def _write_cooldown(self) -> None:
        flush = self.shape.overlap_flush
        if self.all_in_warmup:
            self.exchange(None if self.is_last else "receive next")
        for k in range(self.steady, self.total):
            receives = self._receives_next(k) if k < self.total - 1 else None
            if k > 0 and not self._has_no_gradient(k):
                self.wait("receive next")
            if flush:
                self.post(None if self.is_last else receives)
            self.compute("backward", self.backward_chunks[k])
            if flush:
                self._post_backward(k, receives if self.is_last else None)
            else:
                self.exchange(self._sends_previous(k), receives)
        self.wait("send previous")

    def _post_forward(self, k: int, receives: Channel | None) -> None:
        """Megatron frees the activations that it sends (`deallocate_pipeline_outputs`) and so waits for the send."""
        self.post(self._sends_next(k), receives)
        self.wait("send next")

    def _post_backward(self, k: int, receives: Channel | None) -> None:
        """One gradient may be on its way while the next pass computes."""
        sends = self._sends_previous(k)
        self.post(sends, receives)
        self.wait("send previous", keep=1 if sends else 0)

    def _has_no_input(self, k: int) -> bool:
        return self.is_first and self.forward_chunks[k] == 0

    def _has_no_gradient(self, k: int) -> bool:
        return self.is_last and self.backward_chunks[k] == self.shape.chunks - 1

    def _sends_next(self, k: int) -> Channel | None:
        return None if self.is_last and self.forward_chunks[k] == self.shape.chunks - 1 else "send next"

    def _sends_previous(self, k: int) -> Channel | None:
        return None if self.is_first and self.backward_chunks[k] == 0 else "send previous"

    def _receives_previous(self, k: int) -> Channel | None:
        """Whether an input arrives after pass k: for the first stage what the last one, P - 1 passes behind, sends."""
        behind = k - (self.shape.stages - 1)
        ends_there = behind < 0 or self.forward_chunks[behind] == self.shape.chunks - 1
        return None if self.is_first and ends_there else "receive previous"

    def _receives_next(self, k: int) -> Channel | None:
        behind = k - (self.shape.stages - 1)
        ends_there = behind < 0 or self.backward_chunks[behind] == 0
        return None if self.is_last and ends_there else "receive next"
