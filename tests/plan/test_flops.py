"""FLOPs by parts against Megatron's count of the whole."""

import pytest

from megatron_compete.plan.flops import (
    layer_flops,
    mtp_flops,
    output_flops,
    patches_flops,
    scoring_pass_flops,
    step_flops,
)
from megatron_compete.training.flops import scoring_flops
from megatron_compete.training.vlm.flops import vision_flops
from tests.plan.jobs import DENSE, VISION, job_of
from tests.ranks import run_rank

MLA = (
    "--multi-latent-attention --kv-lora-rank 16 --qk-head-dim 8 --qk-pos-emb-head-dim 4 --v-head-dim 8 --q-lora-rank 12"
)
GDN = (
    "--experimental-attention-variant gated_delta_net --linear-attention-freq 2 --linear-key-head-dim 8 "
    "--linear-value-head-dim 8 --linear-num-key-heads 2 --linear-num-value-heads 4 --linear-conv-kernel-dim 4"
)
LAYOUTS = {
    "multi-latent attention": (1, MLA),
    "latent attention without a queries' latent": (1, MLA.partition(" --q-lora")[0] + " --group-query-attention=false"),
    "multi-token prediction": (1, "--mtp-num-layers 2"),
    "gated delta nets, output gates": (1, f"{GDN} --attention-output-gate"),
    "latent experts": (1, "--moe-latent-size 16 --router topk"),
    "one rank": (1, ""),
    "dense layers and shared experts": (1, "--moe-layer-freq [0,1,1,0] --moe-shared-expert-intermediate-size 16"),
    "grouped queries, relu": (1, "--group-query-attention --num-query-groups 2 --kv-channels 12 --swiglu=false --relu"),
    "everything": (
        32,
        "--tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 2 --context-parallel-size 2 "
        "--expert-model-parallel-size 4 --expert-tensor-parallel-size 2 --global-batch-size 16",
    ),
}


NORMS = {
    "multi-latent attention": 4 * (16 + 12), "latent attention without a queries' latent": 4 * 16,
    "multi-token prediction": 2 * 3 * 32,
}  # fmt: skip
"""Multiplications for a token in norms that Megatron's count has."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_add_up_to_megatrons_count(name: str) -> None:
    gpus, flags = LAYOUTS[name]
    job = job_of(flags, gpus)
    forward = output_flops(job)
    for stage in range(job.sizes.pp):
        forward += sum(sum(vars(layer_flops(job, kind)).values()) for kind in job.layers.run_by(stage, 0))
    ranks_of_a_stage = job.sizes.world // job.sizes.pp
    norms = 2 * NORMS.get(name, 0) * job.step_tokens  # which Megatron counts in these models alone
    ours = (forward + mtp_flops(job)) * job.microbatches * ranks_of_a_stage + norms
    assert 3 * ours == pytest.approx(step_flops(job).normal)


@pytest.mark.parametrize("name", LAYOUTS)
def test_scoring_passes_are_the_trainers(name: str) -> None:
    gpus, flags = LAYOUTS[name]
    job = job_of(flags, gpus)
    ranks_of_a_stage = job.sizes.world // job.sizes.pp
    everywhere = scoring_pass_flops(job) * job.microbatches * ranks_of_a_stage
    assert everywhere == pytest.approx(scoring_flops(job.args, job.step_tokens))


def test_a_step_with_competition() -> None:
    step = step_flops(job_of("--compete-rate 0.25"))
    assert step.competing == step.normal + 2 * step.competing_layer
    assert step.mean == step.normal + 0.25 * 4 * step.competing_layer
    sample = step_flops(job_of("--compete-rate 0.25 --compete-token-fraction 0.5"))
    assert sample.competing_layer == 0.5 * step.competing_layer and sample.normal == step.normal
    without = step_flops(job_of("--router topk"))
    assert without.normal == without.mean == without.competing == step.normal


def counted_by_torch() -> tuple[int, int]:
    """FLOPs that torch counts in a dense tower's and a projector's forward pass of two pictures."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from megatron_compete.vlm.exchange import stock_parts
    from tests.vlm.models import SIGLIP, build, changed, configuration, initialize

    initialize()
    config = configuration(changed(SIGLIP, experts_in=()))
    model = build(config, stock_parts(config))
    with FlopCounterMode(display=False) as tower:
        states = model.vision_model(torch.randn(2, 3, 16, 16))
    with FlopCounterMode(display=False) as projector:
        model.vision_projection(states.transpose(0, 1).contiguous())
    return tower.get_total_flops(), projector.get_total_flops()


def test_tower_and_projector_are_what_torch_counts() -> None:
    """Patches see each other, so attention is twice a causal one's; a projector is as wide as the tower on one side."""
    shape = (
        "--vision-num-layers 2 --vision-hidden-size 16 --vision-ffn-hidden-size 24 --projector-ffn-hidden-size 32 --img-w 16 "
        "--patch-dim 8"
    )
    tower, projector, _ = job_of(f"{VISION} {DENSE} {shape}").parts
    planned = [
        patches_flops(part) + sum(layer_flops(part, kind).total for kind in part.layers.decoder_PV[0][0])
        for part in (tower, projector)
    ]
    assert run_rank(counted_by_torch) == tuple(planned)


def test_what_is_frozen_has_fewer_products() -> None:
    """Of three, a frozen decoder has the forward pass and its inputs' gradients, a projector behind a frozen tower the forward
    pass and its weights' gradients, the tower the forward pass alone."""
    whole, text = step_flops(job_of(f"{VISION} {DENSE}")), step_flops(job_of(DENSE))
    frozen = step_flops(job_of(f"{VISION} {DENSE} --freeze-LM --freeze-ViT"))
    job = job_of(f"{VISION} {DENSE}")
    assert job.vision is not None
    assert whole.normal == pytest.approx(text.normal + 8 * vision_flops(job.vision.config)), "as the trainer counts"
    tower, projector = (
        4 * (patches_flops(part) + sum(layer_flops(part, kind).total for kind in part.layers.decoder_PV[0][0]))
        for part in job.parts[:-1]
    )
    assert job.microbatches == 4
    assert whole.normal == pytest.approx(text.normal + 3 * tower + 3 * projector)
    assert frozen.normal == pytest.approx(2 / 3 * text.normal + tower + 2 * projector)


def test_competing_layers_of_parts_have_their_own() -> None:
    """2 layers at most compete, of three in a tower and a projector; the mean is over all at the rate."""
    step = step_flops(job_of(f"{VISION} --compete-rate 0.25"))
    tower, projector = step.competing_of_part["vision"], step.competing_of_part["projector"]
    assert tower == 2 * 8 * 2 * 4 * 2 * 12 * 8 / 8 * (24 + 24) * 40 / 2
    assert projector / tower == pytest.approx((24 + 32) * 28 / ((24 + 24) * 40))
    assert step.competing == step.normal + max(2 * tower, tower + projector)
    assert step.mean == pytest.approx(step.normal + 0.25 * (3 * tower + projector))
