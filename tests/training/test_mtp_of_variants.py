"""Multi-token prediction beside gated delta nets: the trainer builds it, in whatever stage it lies."""

import re
from pathlib import Path

from megatron_compete.report.scalars import read_scalars
from megatron_compete.training.mtp_of_variants import predicting_like_the_last_layer
from tests.ranks import run_rank
from tests.training.runs import largest_difference, train

NEXT = (
    "--experimental-attention-variant gated_delta_net --linear-attention-freq 2 --linear-num-key-heads 2 "
    "--linear-num-value-heads 4 --linear-key-head-dim 8 --linear-value-head-dim 8 --linear-conv-kernel-dim 4 "
    "--attention-output-gate --qk-layernorm --apply-layernorm-1p --mtp-num-layers 1 --train-iters 3"
)


def test_a_stage_of_its_own_changes_no_loss(tmp_path: Path) -> None:
    train(1, f"{NEXT} --train-iters 1 --save {tmp_path}/ckpt --save-interval 1")
    start = f"{NEXT} --load {tmp_path}/ckpt --no-load-optim"
    train(1, f"{start} --tensorboard-dir {tmp_path}/one")
    layout = "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Et|tt|t|mL"
    train(2, f"{start} {layout} --tensorboard-dir {tmp_path}/two")
    one, two = read_scalars(tmp_path / "one"), read_scalars(tmp_path / "two")
    mtp = [name for name in one if re.search("mtp", name)]
    assert mtp and one["competition/active-layers"] == two["competition/active-layers"]
    for name in ("lm loss", *mtp):
        assert largest_difference(one[name], two[name]) <= 1e-4


def block_specs(with_ours: bool) -> str:
    """Kinds of attention in the layers of multi-token prediction, or what Megatron says."""
    from megatron.training.models import gpt

    from tests.moe.layouts import Layout, initialize, transformer_config

    initialize(Layout())
    config = gpt.GPTModelConfig(
        transformer=transformer_config(
            Layout(), num_layers=4, transformer_impl="local", mtp_num_layers=1, normalization="RMSNorm",
            experimental_attention_variant="gated_delta_net", linear_attention_freq=2, linear_num_key_heads=2,
            linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, linear_conv_kernel_dim=4,
        )
    )  # fmt: skip
    stock = gpt.default_layer_spec(config, None)
    try:
        if with_ours:
            with predicting_like_the_last_layer():
                spec = gpt.mtp_block_spec(config, stock)
        else:
            spec = gpt.mtp_block_spec(config, stock)
    except AssertionError as error:
        return str(error)
    (layer,) = spec.layer_specs
    return layer.submodules.mtp_model_layer.submodules.self_attention.module.__name__


def test_the_last_layers_attention_predicts() -> None:
    assert run_rank(block_specs, True) == "SelfAttention"


def test_upstream_still_refuses_it() -> None:
    assert "Experimental attention variant is not supported" in run_rank(block_specs, False)
