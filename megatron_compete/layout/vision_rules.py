"""What a vision-language model asks of its layout, and what it cannot have yet."""

from collections.abc import Iterable

from megatron_compete.common.errors import CompeteError
from megatron_compete.layout.facts import Facts
from megatron_compete.vlm.config import PARTS, VisionConfig


def vision(f: Facts) -> Iterable[str]:
    """Rules of `megatron_compete/vlm/`; nothing for a language model."""
    try:
        settings = VisionConfig.from_arguments(f.args)
    except CompeteError as error:
        yield str(error)
        return
    if settings.model_type is None:
        return
    yield from _image(f)
    yield from _excluded(f)
    yield from _experts(f, settings)


def _image(f: Facts) -> Iterable[str]:
    """A picture has a patch at least; what is left beside whole ones is not looked at (`vlm/tower.py`)."""
    for flag, size in (("--img-h", f.args.img_h), ("--img-w", f.args.img_w)):
        if size < f.args.patch_dim:
            yield f"{flag} {size} is below --patch-dim {f.args.patch_dim}: change one"
    if f.args.num_channels != 3:
        yield f"--num-channels {f.args.num_channels}: Megatron's towers take pictures of 3 channels, leave it out"


def _excluded(f: Facts) -> Iterable[str]:
    """Megatron's MoE layers need sequence parallelism under tensor parallelism, which its vision code has not, and its
    `LLaVAModel` was never split into virtual stages. What its settings say is in `vlm/validation.py`."""
    excluded = (
        (f.tp > 1, f"--tensor-model-parallel-size {f.tp}", "Megatron's vision tower knows no sequence parallelism, without which its MoE layers refuse to be split"),
        (f.cp > 1, f"--context-parallel-size {f.cp}", "a picture's patches are not split over ranks"),
        ((f.vp or 1) > 1 or f.args.pipeline_model_parallel_layout is not None, "virtual pipeline stages", "the tower lies on the first stage whole, and Megatron's LLaVAModel has one chunk a stage"),
        (f.args.decoder_seq_length is not None, "--decoder-seq-length", "--seq-length is the decoder's, image embeddings included"),
        (f.args.sft, "--sft", "conversations are read from JSON already"),
        (f.args.mock_data, "--mock-data", "there are no synthetic pictures: give --train-data-path"),
        (f.args.fim_data, "--fim-data", "it is for text alone"),
    )  # fmt: skip
    for applies, flag, reason in excluded:
        if applies:
            yield f"--vision-model-type {f.args.vision_model_type} excludes {flag}: {reason}"


def _experts(f: Facts, settings: VisionConfig) -> Iterable[str]:
    chosen = settings.experts_in
    if not f.args.num_experts:
        if chosen != VisionConfig.experts_in or settings.num_experts or settings.router_topk:
            yield "--experts-in, --vision-num-experts and --vision-router-topk need --num-experts: add it, or leave them out"
        return
    of_vision = {"vision", "projector"} & set(chosen)
    if not of_vision and (settings.num_experts or settings.router_topk):
        yield "--vision-num-experts and --vision-router-topk have no effect without vision or projector in --experts-in"
    experts, top = settings.num_experts or f.args.num_experts, settings.router_topk or f.args.moe_router_topk
    if of_vision and experts % f.ep:
        yield (
            f"--vision-num-experts {experts} does not divide over --expert-model-parallel-size {f.ep}: "
            "make the first a multiple of the second"
        )
    if of_vision and top > experts:
        yield f"--vision-router-topk {top} is more than --vision-num-experts {experts}: lower it or add experts"
    if "language" not in chosen and f.args.moe_layer_freq != 1:
        yield f"--moe-layer-freq is about the decoder, which has no experts: add language to --experts-in ({', '.join(PARTS)})"
    shared = f.args.moe_shared_expert_intermediate_size
    if shared and of_vision:
        yield (
            f"--moe-shared-expert-intermediate-size {shared}: experts of tower and projector have biases, and Megatron's shared "
            "experts have none; leave it out, or give --experts-in language"
        )
