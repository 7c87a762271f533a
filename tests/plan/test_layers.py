"""Kinds and places of layers, against the models that Megatron builds and its own readers of layouts."""

from megatron_compete.plan.layers import LayerKind, Layers
from tests.plan.jobs import DENSE_LAYER, MOE_LAYER, STAGES, job_of
from tests.plan.test_flops import GDN, MLA


def of(flags: str, gpus: int = 1) -> Layers:
    return job_of(flags, gpus).layers


def test_a_gpt_by_frequency_and_stage() -> None:
    layers = of(f"{STAGES} --moe-layer-freq [0,1,1,0]", 2)
    assert layers.decoder_PV == (((DENSE_LAYER, MOE_LAYER),), ((MOE_LAYER, DENSE_LAYER),))
    assert layers.kinds == {DENSE_LAYER, MOE_LAYER} and layers.mtp_depths == 0


def test_kinds_of_attention() -> None:
    assert of(MLA).kinds == {LayerKind("mla", "moe")}
    assert [kind.mixer for kind in of(GDN).decoder_PV[0][0]] == ["gdn", "attention"] * 2
    listed = GDN.replace("freq 2", "freq [1,1,1,0]")
    assert [kind.mixer for kind in of(listed).decoder_PV[0][0]] == ["gdn"] * 3 + ["attention"]


def test_multi_token_prediction_is_on_the_last_stage_or_where_a_layout_says() -> None:
    last = of(f"{STAGES} --mtp-num-layers 1", 2)
    assert last.mtp_place == (1, 0) and last.mtp == (MOE_LAYER,)
    assert [len(last.run_by(stage, 0)) for stage in range(2)] == [2, 3]
    own = of("--pipeline-model-parallel-size 3 --mtp-num-layers 1 --pipeline-model-parallel-layout Ett|ttm|L", 3)
    assert own.mtp_place == (1, 0) and own.run_by(1, 0) == (MOE_LAYER,) * 3 and own.run_by(2, 0) == ()
    again = of("--mtp-num-layers 3 --mtp-use-repeated-layer")
    assert (again.mtp_depths, again.mtp_copies, len(again.run_by(0, 0))) == (3, 1, 4 + 3)


def test_a_hybrid_model_by_its_pattern() -> None:
    hybrid = of(f"{STAGES} --num-layers=false --hybrid-layer-pattern ME*-|MEGE/*E --router topk {GDN_SIZES}", 2)
    mamba, moe, attention, mlp, gdn = (
        LayerKind(*parts)
        for parts in (("mamba", None), (None, "moe"), ("attention", None), (None, "mlp"), ("gdn", None))
    )
    assert hybrid.decoder_PV == (((mamba, moe, attention, mlp),), ((mamba, moe, gdn, moe),))
    assert hybrid.mtp == (attention, moe) and hybrid.run_by(1, 0)[-2:] == (attention, moe)
    assert [kind.norms for kind in (moe, mamba, MOE_LAYER)] == [1, 1, 2]


GDN_SIZES = GDN.partition("--linear-attention-freq 2 ")[2]
