"""Tensors are compared with built models in test_parameters.py; here what those cannot be built with on a CPU."""

from dataclasses import replace

from megatron_compete.plan.mixer_parameters import LatentShape, MambaShape, MixerShape, mixer_tensors
from tests.plan.jobs import job_of
from tests.plan.test_flops import MLA

TENSOR = "--tensor-model-parallel-size 2 --sequence-parallel"


def test_down_projections_are_whole_on_every_rank_or_split_with_the_local_layers() -> None:
    whole = MixerShape.of(job_of(f"{MLA} {TENSOR}", 2))
    assert whole.latent.replicated
    split = replace(whole, latent=replace(whole.latent, replicated=False))
    totals = [sum(tensors.total for tensors in mixer_tensors(shape, "mla")) for shape in (whole, split)]
    assert totals[0] == totals[1]
    on_rank = [sum(tensors.on_rank for tensors in mixer_tensors(shape, "mla")) for shape in (whole, split)]
    assert on_rank[0] - on_rank[1] == 32 * (12 + 16 + 4) / 2


def test_shapes_of_what_a_model_has_not_are_nothing() -> None:
    assert LatentShape.of(job_of()) == LatentShape()
    assert (
        MambaShape.of(job_of("--mamba-head-dim 8")).heads == 2 * 32 // 8
    )  # upstream's default of twice the hidden size
