"""Megatron's real pipeline schedules, run on one process with transfers and passes that only write down their order."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from megatron.core.enums import ModelType
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.pipeline_parallel import schedules, utils
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_compete.launch.cpu_backend import CudaToCpu
from megatron_compete.plan.stage_program import Operation, PipelineShape

SIDES = {"send_next": "send next", "recv_prev": "receive previous", "send_prev": "send previous", "recv_next": "receive next"}  # fmt: skip


class Handle:
    """What isend/irecv return."""

    def __init__(self, log: list[Operation], channel: str, index: int) -> None:
        self.log, self.operation = log, Operation("wait", channel=channel, number=index)  # type: ignore[arg-type]

    def wait(self) -> None:
        if self.operation not in self.log:  # Megatron waits for some handles twice
            self.log.append(self.operation)


class Recorder(P2PCommunicator):
    """A communicator without ranks: every transfer is there at once, and is written down."""

    def __init__(self, config: ModelParallelConfig, shape: PipelineShape, stage: int) -> None:
        self.pp_group = SimpleNamespace(size=lambda: shape.stages, rank=lambda: stage)
        self.config = config
        self.virtual_pipeline_model_parallel_size = shape.chunks
        self.log: list[Operation] = []
        self.posted: defaultdict[str, int] = defaultdict(int)

    def _communicate(
        self, *, tensor_send_next, tensor_send_prev, recv_prev, recv_next, tensor_shape, wait_on_reqs=True
    ):  # type: ignore[no-untyped-def]
        wanted = {"send_next": tensor_send_next is not None, "recv_prev": recv_prev}
        wanted |= {"send_prev": tensor_send_prev is not None, "recv_next": recv_next}
        handles = {name: self._post(SIDES[name]) for name, there in wanted.items() if there}
        if wait_on_reqs:
            for handle in handles.values():
                handle.wait()
        received = [torch.zeros(1) if there else None for there in (recv_prev, recv_next)]
        return *received, None if wait_on_reqs else handles

    def _post(self, channel: str) -> Handle:
        index = self.posted[channel]
        self.posted[channel] += 1
        self.log.append(Operation("post", channel=channel, number=index))  # type: ignore[arg-type]
        return Handle(self.log, channel, index)


def record(shape: PipelineShape, stage: int) -> list[Operation]:
    """The operations of `stage`, as Megatron's schedule function performs them."""
    config = _config(shape)
    recorder = Recorder(config, shape, stage)
    group = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    collection = ProcessGroupCollection(tp=group, cp=group)
    models = [torch.nn.Module() for _ in range(shape.chunks)]
    for model in models:
        model.config, model.model_type = config, ModelType.encoder_or_decoder  # type: ignore[assignment]
    run = (
        schedules.forward_backward_pipelining_with_interleaving
        if shape.chunks > 1
        else schedules.forward_backward_pipelining_without_interleaving
    )
    with CudaToCpu(), _passes_that_write(recorder.log):
        run(
            forward_step_func=None, data_iterator=[None] * shape.chunks, model=models, num_microbatches=shape.microbatches,
            seq_length=8, micro_batch_size=1, p2p_communicator=recorder, pg_collection=collection,
        )  # fmt: skip
    return recorder.log


def _config(shape: PipelineShape) -> ModelParallelConfig:
    config = ModelParallelConfig(
        pipeline_model_parallel_size=shape.stages,
        virtual_pipeline_model_parallel_size=shape.chunks if shape.chunks > 1 else None,
        microbatch_group_size_per_vp_stage=shape.group_size,
        pipeline_dtype=torch.float32,
        overlap_p2p_comm=shape.overlap and shape.chunks > 1,
        batch_p2p_comm=not (shape.overlap and shape.chunks > 1),
        overlap_p2p_comm_warmup_flush=shape.overlap_flush,
        deallocate_pipeline_outputs=True,  # as megatron.training sets it
    )
    config.hidden_size = 8  # type: ignore[attr-defined]
    return config


@contextmanager
def _passes_that_write(log: list[Operation]) -> Iterator[None]:
    def forward_step(*args: Any, vp_stage: int | None = None, **kwargs: Any) -> tuple[torch.Tensor, int]:
        log.append(Operation("forward", vp_stage or 0))
        output = torch.zeros(1)
        output.chunk = vp_stage or 0  # type: ignore[attr-defined]
        return output, 0

    def backward_step(input_tensor: Any, output_tensor: Any, gradient: Any, config: Any) -> torch.Tensor:
        log.append(Operation("backward", output_tensor.chunk))
        return torch.zeros(1)

    with (
        mock.patch.multiple(schedules, forward_step=forward_step, backward_step=backward_step),
        # Without torch.distributed, Megatron's own would say that every rank is the only one.
        mock.patch.multiple(utils, get_pg_rank=lambda group: group.rank(), get_pg_size=lambda group: group.size()),
    ):
        yield
