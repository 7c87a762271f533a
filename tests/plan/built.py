"""What Megatron really builds, holds and sends on a rank, for comparison with the plan: on gloo ranks of `tests.ranks`."""

import sys
from dataclasses import dataclass
from typing import Any

from megatron_compete.launch.recipe import MODULE, Recipe
from tests.plan.jobs import recipe_of
from tests.ranks import run_ranks

RUN = "--num-workers 0 --eval-iters 0 --log-interval 1"


@dataclass(frozen=True)
class Held:
    """Of one rank: what it holds after its last step, and the bytes that it handed to collectives in that step."""

    pipeline_rank: int
    dense_parameters: int
    expert_parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    sent_bytes: int


def ranks_of(flags: str, ranks: int) -> list[Held]:
    """Every rank of a short run of `recipe_of(flags)`. Call it through `shared`: several modules look at the same run."""
    return run_ranks(ranks, trained, recipe_of(flags))


def built(recipe: Recipe) -> tuple[int, list[list[int]]]:
    """This rank's pipeline rank, and the sizes of the parameter tensors of each model chunk, ascending."""
    from megatron.core import mpu
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.initialize import initialize_megatron
    from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig
    from megatron.training.models.hybrid import HybridModelBuilder

    from megatron_compete.training.datasets import embedding_ranks
    from megatron_compete.training.model import model_config
    from megatron_compete.training.parse import parse_arguments
    from megatron_compete.training.vlm.model import VisionLanguageModelBuilder, VisionLanguageModelConfig

    recipe.override(_run_of(recipe))
    sys.argv = _command_line(recipe)
    args = parse_arguments()
    initialize_megatron(allow_no_cuda=True, get_embedding_ranks=embedding_ranks)
    config = model_config(args)
    builder: Any = (GPTModelBuilder if isinstance(config, GPTModelConfig) else HybridModelBuilder)(config)
    if isinstance(config, VisionLanguageModelConfig):
        config.image_token_id = 5  # the null tokenizer knows no <image>
        builder = VisionLanguageModelBuilder(config)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    virtual = args.virtual_pipeline_model_parallel_size
    chunks = []
    for chunk in range(virtual or 1):
        vp_stage = chunk if virtual else None
        first = mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
        last = mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
        model = builder.build_model(groups, pre_process=first, post_process=last, vp_stage=vp_stage)
        chunks.append(sorted(parameter.numel() for parameter in model.parameters()))
    return mpu.get_pipeline_model_parallel_rank(), chunks


def _run_of(recipe: Recipe) -> list[str]:
    """Further flags of a short run; there are no synthetic pictures."""
    return [*RUN.split(), *([] if "vision-model-type" in recipe.arguments else ["--mock-data"])]


def _command_line(recipe: Recipe) -> list[str]:
    command = recipe.command()
    return ["pretrain", *command[command.index(MODULE) + 1 :]]


def trained(recipe: Recipe, steps: int = 2) -> Held:
    """Train a few steps and count."""
    import torch
    from megatron.training import training

    from megatron_compete.training import pretrain

    models: list[Any] = []
    sent: list[int] = []
    held: list[Held] = []
    build, step = training.setup_model_and_optimizer, training.train_step
    destroy = torch.distributed.destroy_process_group

    def build_and_keep(*args: Any, **kwargs: Any) -> Any:
        models.append(build(*args, **kwargs))
        return models[-1]

    def step_and_count(*args: Any, **kwargs: Any) -> Any:
        with _sent_bytes() as bytes_of_step:
            result = step(*args, **kwargs)
        sent.append(bytes_of_step.total)
        return result

    def count_and_destroy() -> None:  # the last thing that the trainer does while its groups exist
        if sent:
            held.append(_count(*models[0][:2], sent[-1]))
        destroy()

    training.setup_model_and_optimizer, training.train_step = build_and_keep, step_and_count
    torch.distributed.destroy_process_group = count_and_destroy
    recipe.override([*_run_of(recipe), "--train-iters", str(steps)])
    sys.argv = _command_line(recipe)
    pretrain.main()
    return held[0]


def _sent_bytes() -> Any:
    """The benchmark's counter, with rules for the collectives that only the trainer uses."""
    from benchmarks import traffic

    traffic.RULES.update(
        allreduce_coalesced_=traffic._all_reduce,
        reduce_scatter_tensor_coalesced_=lambda call, group: traffic._reduce_scatter(
            {"input_tensor": call["inputs"]}, group
        ),
        allgather_into_tensor_coalesced_=lambda call, group: traffic._all_gather(
            {"input_tensor": call["inputs"]}, group
        ),
        send=lambda call, group: call["tensors"][0].nbytes,
        recv_=traffic._nothing,
    )
    return traffic.SentBytes()


def _count(model: list[Any], optimizer: Any, sent_bytes: int) -> Held:
    from megatron.core import mpu

    parameters = [parameter for chunk in model for parameter in chunk.parameters()]
    buffers = [buffer for chunk in model for buffer in chunk.buffers + chunk.expert_parallel_buffers]
    flat = [buffer.param_data for buffer in buffers if buffer.param_data is not None]
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return Held(
        pipeline_rank=mpu.get_pipeline_model_parallel_rank(),
        dense_parameters=sum(p.numel() for p in parameters if getattr(p, "allreduce", True)),
        expert_parameters=sum(p.numel() for p in parameters if not getattr(p, "allreduce", True)),
        weight_bytes=sum(tensor.nbytes for tensor in flat or parameters),
        gradient_bytes=sum(buffer.grad_data.nbytes for buffer in buffers),
        optimizer_bytes=sum(_state_bytes(part.optimizer, parameters[0].dtype) for part in parts if part.optimizer),
        sent_bytes=sent_bytes,
    )


def _state_bytes(adam: Any, model_dtype: Any) -> int:
    """Moments, and parameters that the optimizer keeps in another precision than the model."""
    masters = [p for group in adam.param_groups for p in group["params"] if p.dtype != model_dtype]
    moments = [state[name] for state in adam.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return sum(tensor.nbytes for tensor in masters + moments)
