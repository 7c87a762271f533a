"""Activations of what mixes tokens, by hand and against what a layer of Megatron's keeps."""

from megatron_compete.plan.activations import kept_activations, layer_activations
from megatron_compete.plan.layers import LayerKind
from megatron_compete.plan.mixer_activations import MAMBA_CHUNK, SCAN_CHUNK, mixer_activations
from tests.plan.jobs import job_of
from tests.plan.test_flops import GDN, MLA

TOKENS = 64
LATENT_LAYER = LayerKind("mla", "moe")


def test_latent_attention() -> None:
    """Ranks 12 and 16, 4 heads of 8 + 4 for queries and keys and 8 for values, bf16: latents before and after their
    norms, queries and keys with values of all heads, the output."""
    kept = mixer_activations(job_of(f"--bf16 {MLA}"), "mla")
    assert kept.inputs == TOKENS * (12 + 16 + 4 + 12 + 16) * 2
    assert kept.core_inputs == kept.up_projections == TOKENS * 4 * (12 + 12 + 8) * 2
    assert (kept.core, kept.output) == (TOKENS * 4 * 4, TOKENS * 4 * 8 * 2)


def test_latent_attention_keeps_latents_alone_where_the_up_projections_run_again() -> None:
    flags = f"--bf16 {MLA} --recompute-granularity selective --recompute-modules"
    whole = kept_activations(job_of(f"--bf16 {MLA}"), LATENT_LAYER).per_microbatch
    again = kept_activations(job_of(f"{flags} mla_up_proj"), LATENT_LAYER)
    assert whole - again.per_microbatch == TOKENS * 4 * (12 + 12 + 8) * 2 == again.live


def test_gates_and_repeated_groups() -> None:
    plain, gated = (
        mixer_activations(job_of(f"--bf16 {flags}"), "attention") for flags in ("", "--attention-output-gate")
    )
    assert gated.total - plain.total == 2 * TOKENS * 32 * 2
    flags = "--bf16 --tensor-model-parallel-size 2 --sequence-parallel --group-query-attention --num-query-groups"
    repeated, divided = (mixer_activations(job_of(f"{flags} {groups}", 2), "attention") for groups in (1, 2))
    assert repeated == divided  # a rank of two has one whole group of keys either way


def test_scans_keep_a_state_a_chunk() -> None:
    gdn = mixer_activations(job_of(f"--bf16 {GDN}"), "gdn")
    assert gdn.core == TOKENS / SCAN_CHUNK * 4 * 8 * 8 * 2  # heads, width of keys and of values
    mamba = mixer_activations(
        job_of("--bf16 --mamba-state-dim 16 --mamba-head-dim 8 --mamba-num-heads 8 --mamba-num-groups 2"), "mamba"
    )
    assert mamba.core == TOKENS / MAMBA_CHUNK * 64 * 16 * 4
    assert mamba.core_inputs == TOKENS * (2 * 64 + 2 * 2 * 16 + 8) * 2


def test_fp8_keeps_quantised_inputs_of_linear_layers() -> None:
    bf16, fp8 = (
        layer_activations(job_of(f"--bf16 {flags}"), LayerKind("attention", "mlp"))
        for flags in ("", "--fp8-format e4m3 --fp8-recipe mxfp8")
    )
    assert fp8.attention_norm == bf16.attention_norm * (1 + 1 / 32) / 2
    assert fp8.mixer == bf16.mixer and fp8.layer_input == bf16.layer_input
    assert bf16.mlp - fp8.mlp == TOKENS * 48 * (2 - (1 + 1 / 32))


def test_offloaded_modules_are_on_the_host() -> None:
    flags = "--bf16 --fine-grained-activation-offloading --offload-modules core_attn expert_fc1 --router topk"
    kind = LayerKind("attention", "moe")
    layer = layer_activations(job_of("--bf16 --router topk"), kind)
    kept = kept_activations(job_of(flags), kind)
    assert layer.total - kept.per_microbatch == layer.mixer.core_inputs + layer.mlp_input
    half = kept_activations(job_of(f"{flags} --activation-offload-fraction 0.5"), kind)
    assert layer.total - half.per_microbatch == (layer.total - kept.per_microbatch) / 2
