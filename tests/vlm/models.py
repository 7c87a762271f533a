"""A tiny vision-language model, its microbatches, and a step of it by Megatron's own schedule."""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.config import CompeteConfig
from megatron_compete.vlm.config import VisionConfig

IMAGE, VOCAB, LENGTH = 3, 64, 24
"""The image token's id; the vocabulary; positions after expansion."""
SIDE, PATCH, PATCHES = 16, 8, 4
EXPERTS, WINNERS = 4, 2
TOWER_LAYERS, LAYERS = 2, 2

SIGLIP = VisionConfig(
    "siglip", num_layers=TOWER_LAYERS, hidden_size=16, ffn_hidden_size=24, num_attention_heads=2, init_method_std=0.2
)
CLIP = VisionConfig(
    "clip", num_layers=TOWER_LAYERS, hidden_size=16, ffn_hidden_size=24, num_attention_heads=2, init_method_std=0.2,
    disable_class_token=True,
)  # fmt: skip
ALL_COMPETE = CompeteConfig(rate=1.0, max_active_layers=6, distill_coeff=1.0, diversity_coeff=0.5, response_balance_coeff=0.5)  # fmt: skip
"""Every layer at every step, with losses that are not small beside the task's."""


def changed[Settings: (VisionConfig, CompeteConfig)](settings: Settings, **changes: Any) -> Settings:
    return dataclasses.replace(settings, **changes)


def base_transformer(**overrides: Any) -> Any:
    """The TransformerConfig of all arguments, as Megatron makes it."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    settings: dict[str, Any] = dict(
        num_layers=LAYERS, hidden_size=32, num_attention_heads=4, ffn_hidden_size=48, num_moe_experts=EXPERTS,
        moe_ffn_hidden_size=48, moe_router_topk=WINNERS, moe_router_load_balancing_type="none", moe_aux_loss_coeff=0.0,
        moe_token_dispatcher_type="alltoall", add_bias_linear=False, gated_linear_unit=True, activation_func=F.silu,
        normalization="RMSNorm", hidden_dropout=0.0, attention_dropout=0.0, bias_activation_fusion=False,
        use_cpu_initialization=True, gradient_accumulation_fusion=False, transformer_impl="local",
        init_method_std=0.1, pipeline_dtype=torch.float32, deallocate_pipeline_outputs=True,
    )  # fmt: skip
    return TransformerConfig(**(settings | overrides))


def configuration(settings: VisionConfig = SIGLIP, **overrides: Any) -> Any:
    from megatron_compete.vlm.parts import VisionLanguageConfig

    return VisionLanguageConfig.of(base_transformer(**overrides), settings, SIDE, SIDE, PATCH)


def initialize(pp: int = 1, ep: int = 1) -> None:
    """torch.distributed and Megatron's groups, and its random states."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(pipeline_model_parallel_size=pp, expert_model_parallel_size=ep)
    torch.manual_seed(1)
    model_parallel_cuda_manual_seed(1)


def build(config: Any, exchanges: Any, counted: bool = True) -> Any:
    """This rank's stage of the model, with the weights of `name_weights`.

    Args:
        counted: have Megatron's tracker count its layers, as a trainer without a `ModelCompetition` does.
    """
    from megatron.core import parallel_state

    from megatron_compete.moe.metrics import install_counts
    from megatron_compete.vlm.model import build_model

    if counted:
        install_counts(config)
    model = build_model(
        config, exchanges, vocab_size=VOCAB, seq_length=LENGTH, image_token_id=IMAGE,
        pre_process=parallel_state.is_pipeline_first_stage(), post_process=parallel_state.is_pipeline_last_stage(),
    )  # fmt: skip
    name_weights(model)
    return model.train()


def competing_model(config: Any, compete: CompeteConfig = ALL_COMPETE, step: Callable[[], int] = lambda: 0) -> Any:
    from megatron_compete.moe.competition import Competition
    from megatron_compete.vlm.exchange import competing_parts

    return build(config, competing_parts(config, Competition.of_model(compete, config, step)))


def whole_name(name: str, model: Any) -> str:
    """A parameter's name in the whole model: decoder layers and experts are counted over all ranks."""
    from megatron.core import parallel_state

    parts = name.split(".")
    if name.startswith("language_model.decoder.layers."):
        parts[3] = str(model.language_model.decoder.layers[int(parts[3])].layer_number - 1)
    if "local_experts" in parts:
        at = parts.index("local_experts") + 1
        parts[at] = str(int(parts[at]) + _first_expert(parallel_state))
    return ".".join(parts)


def _first_expert(parallel_state: Any) -> int:
    size = parallel_state.get_expert_model_parallel_world_size()
    return int(parallel_state.get_expert_model_parallel_rank()) * (EXPERTS // size)


def name_weights(model: Any) -> None:
    """Weights drawn by the parameters' names in the whole model, so that every layout has the same."""
    for name, parameter in model.named_parameters():
        random = torch.Generator().manual_seed(zlib.crc32(whole_name(name, model).encode()))
        values = torch.randn(parameter.shape, generator=random) * 0.3
        is_norm = parameter.dim() == 1 and name.endswith("weight")
        parameter.data.copy_(1 + 0.1 * values if is_norm else values)


@dataclass(frozen=True)
class Batch:
    """A microbatch as the model takes it; shapes are the contract's of `VisionLanguageModel.forward`."""

    images: Tensor
    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    num_image_tiles: Tensor
    fillers: int = 0
    """Tokens at the end of all samples that are none."""

    @classmethod
    def random(cls, tiles: Sequence[Sequence[int]], text: int = 8, seed: int = 0) -> "Batch":
        """A sample for each entry, which names the tiles of each of its images; none for text alone."""
        random = torch.Generator().manual_seed(seed)
        tokens = torch.randint(4, VOCAB, (len(tiles), text), generator=random)
        for sample, images in enumerate(tiles):
            for place in range(len(images)):
                tokens[sample, 1 + 2 * place] = IMAGE
        labels = torch.roll(tokens, -1, dims=1)
        labels[:, -1] = 1
        loss_mask = torch.ones(tokens.shape)
        loss_mask[:, : text // 2] = 0
        loss_mask[labels == IMAGE] = 0
        labels = torch.where((labels == IMAGE) | (loss_mask == 0), -100, labels)
        counts = [count for images in tiles for count in images]
        images = torch.randn(sum(counts), 3, SIDE, SIDE, generator=random)
        return cls(images, tokens, labels, loss_mask, torch.tensor(counts, dtype=torch.int32))

    def filled(self, count: int) -> "Batch":
        """The same with so many fillers after each sample."""
        fillers = {"tokens": 0, "labels": -100, "loss_mask": 0}
        values = {name: F.pad(getattr(self, name), (0, count), value=value) for name, value in fillers.items()}
        return dataclasses.replace(self, **values, fillers=self.fillers + count)

    def on_stage(self, first: bool) -> dict[str, Any]:
        length = self.tokens.shape[1] - self.fillers
        positions = F.pad(torch.arange(length), (0, self.fillers)).expand_as(self.tokens)
        return dict(
            images=self.images if first else None, input_ids=self.tokens, position_ids=positions, attention_mask=None,
            labels=self.labels, loss_mask=self.loss_mask, num_image_tiles=self.num_image_tiles,
        )  # fmt: skip


def forward_step(batches: Iterator[Batch], model: Any) -> tuple[Tensor, Callable]:
    """Mean loss over the tokens that count, or under --calculate-per-token-loss their sum."""
    from megatron.core import parallel_state
    from megatron.core.utils import get_attr_wrapped_model

    from megatron_compete.moe.loss_tokens import set_loss_tokens

    batch = next(batches)
    config = get_attr_wrapped_model(model, "config")
    if config.calculate_per_token_loss:
        set_loss_tokens(batch.loss_mask.sum())
    output, mask = model(**batch.on_stage(parallel_state.is_pipeline_first_stage()))

    def loss(output: Tensor) -> tuple[Any, ...]:
        total, count = (output * mask).sum(), mask.sum()
        mean = {"loss": (total / count).detach()}
        return (total, count.int(), mean) if config.calculate_per_token_loss else (total / count, mean)

    return output, loss


def train_step(model: Any, batches: Sequence[Batch]) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of the microbatches on the last stage, and finished gradients by their names in the whole model."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.pipeline_parallel import get_forward_backward_func

    model.zero_grad()
    model.config.finalize_model_grads_func = finalize_model_grads
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), model)
    reports = get_forward_backward_func()(
        forward_step_func=forward_step, data_iterator=iter(batches), model=[wrapped], num_microbatches=len(batches),
        seq_length=LENGTH, micro_batch_size=batches[0].tokens.shape[0], forward_only=False,
    )  # fmt: skip
    grads = {whole_name(name, model): p.main_grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return [float(report["loss"]) for report in reports], grads


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest difference in units of the largest expected value."""
    scale = float(expected.abs().max())
    difference = float((actual.double() - expected.double()).abs().max())
    return difference / scale if scale else difference
