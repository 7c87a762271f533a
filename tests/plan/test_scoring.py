from dataclasses import replace

from megatron_compete.plan.groups import Groups
from megatron_compete.plan.hardware import preset
from megatron_compete.plan.layer_times import LayerTimes
from megatron_compete.plan.scoring import SCRATCH_BYTES, fused_buffer_bytes, scoring_kernel
from tests.plan.jobs import example, job_of


def test_the_kernel_is_the_trainers_choice() -> None:
    assert scoring_kernel(job_of("--bf16")) == "fused"
    assert scoring_kernel(job_of("--bf16"), preset("a100")) == "plain"  # `CAPABILITY` of moe/kernels/coverage.py
    assert scoring_kernel(job_of("--bf16 --compete-score-kernel plain")) == "plain"
    assert (
        scoring_kernel(job_of("--bf16 --disable-bias-linear=false --position-embedding-type learned_absolute"))
        == "plain"
    )
    assert scoring_kernel(job_of("--bf16 --moe-ffn-hidden-size 32 --compete-score-kernel fused-fp8")) == "fused-fp8"


def test_constants_are_those_of_the_kernels() -> None:
    """Their modules need Triton, which a login node may lack."""
    from pathlib import Path

    import megatron_compete.moe.kernels as kernels
    from megatron_compete.plan.scoring import ON_CHIP_WIDTH

    folder = Path(kernels.__file__).parent
    assert f"MAX_WIDTH = {ON_CHIP_WIDTH}" in (folder / "narrow.py").read_text()
    assert SCRATCH_BYTES == 256 * 2**20 and "SCRATCH_BYTES = 256 * 2**20" in (folder / "wide.py").read_text()


def test_only_wide_experts_write_their_hidden_layer() -> None:
    assert fused_buffer_bytes(job_of("--bf16")) == 0.0
    assert fused_buffer_bytes(job_of("--bf16 --moe-ffn-hidden-size 512")) == 512 * 2
    job = example("moe_235b_a22b")
    assert job.compete is not None
    tokens = min(job.compete.score_chunk_tokens, job.sharded_tokens) * job.sizes.ep * job.sizes.etp
    assert fused_buffer_bytes(job) <= SCRATCH_BYTES / tokens


def test_fused_scoring_moves_less_than_plain_and_fp8_multiplies_faster() -> None:
    flags = "--compete-preset paper --compete-score-kernel"
    plain, fused, fp8 = (seconds(f"{flags} {kernel}") for kernel in ("plain", "fused", "fused-fp8"))
    assert fp8 < fused < plain


def seconds(flags: str) -> float:
    job = example("moe_30b_a3b", flags)
    assert job.compete is not None
    hardware = replace(preset("h100"), kernel_seconds=0.0)
    return LayerTimes(job, hardware, Groups(job)).competing().forward
