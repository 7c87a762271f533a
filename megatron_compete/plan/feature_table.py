"""What a recipe may ask for, and what is known of it together with competition: one table, for the command and the docs.

Rows name the test that shows it. A test keeps every row true: the named tests exist, each row is recognised in its own
example, a refused one is refused and the others are accepted (`tests/plan/test_feature_table.py`).
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["tested", "kernels untested", "untested", "refused"]

MEANINGS: dict[Status, str] = {
    "tested": "compared on CPU ranks with a dense reference or with the stock model",
    "kernels untested": "all but its CUDA kernels is tested on CPU ranks; it was never run on a GPU here",
    "untested": "competition does not touch it and nothing excludes it; needs a GPU, was never run here, and is only priced",
    "refused": "said before the first step, with the reason",
}

MOE, TRAINING = "tests/moe/", "tests/training/"
RULE = f"{MOE}test_router_settings.py::test_layer_equals_dense_reference"
SCALE = f"{MOE}test_router_settings.py::test_output_keeps_its_scale_and_tokens_their_groups"
LOSSES = f"{MOE}test_router_losses.py::test_competing_steps_carry_the_routers_losses"
FLEX = f"{MOE}test_dispatchers.py::test_flex_dispatcher_serves_normal_steps_alone"
MODELS = f"{TRAINING}test_models.py::test_layout_equals_one_rank"
LAYOUTS = f"{TRAINING}test_pretrain.py::test_layout_equals_one_rank"
RECOMPUTED = f"{TRAINING}test_pretrain.py::test_recompute_changes_no_bit"
PUBLIC = "tests/recipes/test_public.py::test_competes_by_response"
FP8 = f"{MOE}test_fp8.py::test_winners_are_those_of_bf16_and_gradients_are_close"
GRAPHS = f"{MOE}test_graphs.py::test_training_is_the_same_with_graphs"
SEEING, CONVERSATIONS = "tests/vlm/", "tests/data/conversations/"
STATES = f"{SEEING}test_tower.py::test_the_states_before_the_last_layer_are_transformers"
BIASED_EXPERTS = f"{SEEING}test_projector.py::test_a_layer_equals_the_dense_reference"
PLANNED = "tests/plan/test_job.py::test_public_recipes_are_priced"

Applies = Callable[[argparse.Namespace], object]


@dataclass(frozen=True)
class Feature:
    """A row."""

    name: str
    flags: str
    """As an example of it, which the tests use."""
    applies: Applies
    """Whether validated arguments ask for it."""
    status: Status
    evidence: str
    """The test, `path::name`; of a refused one the reason."""
    on_gpu: str = ""
    """The test that is ready for a GPU, if there is one."""


def _scores(name: str) -> Applies:
    return lambda a: a.num_experts and a.moe_router_score_function == name


def _balances(*names: str) -> Applies:
    def applies(args: argparse.Namespace) -> bool:
        kinds = args.moe_router_load_balancing_type
        return bool(args.num_experts) and any(kind in names for kind in ([kinds] if isinstance(kinds, str) else kinds))

    return applies


def _any(coefficients: float | list[float]) -> bool:
    return any(coefficients) if isinstance(coefficients, list) else bool(coefficients)


def _backend(name: str, in_fp8: bool = False) -> Applies:
    return lambda a: (
        a.moe_token_dispatcher_type == "flex" and a.moe_flex_dispatcher_backend == name and bool(a.fp8) == in_fp8
    )


def _fp8(recipe: str) -> Applies:
    return lambda a: a.fp8 and a.fp8_recipe == recipe


def _experts_in(part: str) -> Applies:
    return lambda a: a.vision_model_type and a.num_experts and part in a.experts_in


def _recomputes(*modules: str) -> Applies:
    return lambda a: a.recompute_granularity == "selective" and set(modules) & set(a.recompute_modules or ())


MLA = (
    "--multi-latent-attention --q-lora-rank 12 --kv-lora-rank 16 --qk-head-dim 8 --qk-pos-emb-head-dim 4 --v-head-dim 8"
)
GDN_SIZES = "--linear-key-head-dim 8 --linear-value-head-dim 8 --linear-num-key-heads 2 --linear-num-value-heads 4"
GDN = (
    f"--experimental-attention-variant gated_delta_net --linear-attention-freq 2 --linear-conv-kernel-dim 4 {GDN_SIZES}"
)
EP2 = "--expert-model-parallel-size 2"
IN_FP8 = "--bf16 --fp8-format e4m3 --fp8-recipe"
OVERLAP = f"--bf16 {EP2} --overlap-moe-expert-parallel-comm"
FSDP = "--bf16 --ckpt-format fsdp_dtensor --no-gradient-accumulation-fusion --use-distributed-optimizer"
SELECTIVE = "--recompute-granularity selective --recompute-modules"
BIASED = "--moe-router-score-function sigmoid --moe-router-enable-expert-bias"

ROUTER = (
    Feature("softmax scores", "--moe-router-score-function softmax", _scores("softmax"), "tested", RULE),
    Feature("sigmoid scores", "--moe-router-score-function sigmoid", _scores("sigmoid"), "tested", RULE),
    Feature("sqrtsoftplus scores", "--moe-router-score-function sqrtsoftplus", _scores("sqrtsoftplus"), "tested", RULE),
    Feature("expert bias", BIASED, lambda a: a.moe_router_enable_expert_bias, "tested",
            f"{MOE}test_router_losses.py::test_expert_bias_counts_what_the_router_would_have_chosen"),
    Feature("groups of experts", "--moe-router-num-groups 4 --moe-router-group-topk 2", lambda a: a.moe_router_group_topk,
            "tested", SCALE),
    Feature("softmax before the choice", "--moe-router-pre-softmax", lambda a: a.moe_router_pre_softmax, "tested", SCALE),
    Feature("scaled weights", "--moe-router-topk-scaling-factor 2.5", lambda a: a.moe_router_topk_scaling_factor, "tested",
            SCALE),
    Feature("balance losses", "--moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 1e-2",
            lambda a: _balances("aux_loss", "seq_aux_loss", "global_aux_loss")(a) and _any(a.moe_aux_loss_coeff), "tested", LOSSES),
    Feature("z-loss", "--moe-z-loss-coeff 1e-3", lambda a: a.moe_z_loss_coeff, "tested", LOSSES),
    Feature("input jitter", "--moe-input-jitter-eps 1e-2", lambda a: a.moe_input_jitter_eps, "tested",
            f"{MOE}test_router_losses.py::test_competing_steps_jitter_the_routers_input"),
    Feature("forced load balance", "--moe-router-force-load-balancing", lambda a: a.moe_router_force_load_balancing, "tested",
            f"{MOE}test_router_losses.py::test_forced_load_balancing_forces_winners_too"),
    Feature("Sinkhorn or quantile balance", "--moe-router-load-balancing-type sinkhorn", _balances("sinkhorn", "quantile_balancing"),
            "tested", f"{MOE}test_router_losses.py::test_routers_that_choose_by_other_means"),
    Feature("fused router", "--moe-router-fusion", lambda a: a.moe_router_fusion, "kernels untested", RULE),
    Feature("routing replay", "--moe-enable-routing-replay", lambda a: a.moe_enable_routing_replay, "refused",
            "who wins is not replayed; --compete-kind utility takes it"),
)  # fmt: skip
"""What the router does."""

EXPERTS = (
    Feature("grouped GEMM", "--bf16 --moe-grouped-gemm", lambda a: a.moe_grouped_gemm, "kernels untested",
            f"{MOE}test_te_path.py::test_specs_and_grouped_experts_with_their_kernel_replaced", FP8),
    Feature("fused permutation", "--bf16 --moe-permute-fusion", lambda a: a.moe_permute_fusion, "kernels untested", RULE),
    Feature("shared experts", "--moe-shared-expert-intermediate-size 16", lambda a: a.moe_shared_expert_intermediate_size, "tested",
            f"{MOE}test_dispatchers.py::test_shared_experts"),
    Feature("gate of shared experts", "--moe-shared-expert-intermediate-size 16 --moe-shared-expert-gate",
            lambda a: a.moe_shared_expert_gate, "tested", PUBLIC),
    Feature("latent experts", "--moe-latent-size 16", lambda a: a.moe_latent_size, "tested",
            f"{MOE}test_latent.py::test_layer_equals_dense_reference"),
    Feature("capacity of experts", "--moe-expert-capacity-factor 1.0", lambda a: a.moe_expert_capacity_factor is not None,
            "tested", RULE),
    Feature("padding of rows for FP8", f"{IN_FP8} mxfp8 --moe-router-padding-for-quantization --moe-grouped-gemm",
            lambda a: a.moe_router_padding_for_quantization or a.moe_router_padding_for_fp8, "kernels untested",
            f"{MOE}test_row_dispatcher.py::*", f"{MOE}test_fp8.py::test_router_padding_changes_no_competing_step"),
    Feature("weights on the experts' input", "--moe-router-topk 1 --moe-router-pre-softmax --moe-apply-probs-on-input",
            lambda a: a.moe_apply_probs_on_input, "refused", "experts would answer weighted tokens"),
    Feature("Transformer Engine's op fuser", "--bf16 --use-transformer-engine-op-fuser", lambda a: a.use_transformer_engine_op_fuser,
            "refused", "it fuses experts into kernels of new GPUs, which the scoring pass was never run with"),
)  # fmt: skip
"""What experts are."""

SCHEDULES = (
    Feature("all-to-all dispatch", "--moe-token-dispatcher-type alltoall",
            lambda a: a.num_experts and a.moe_token_dispatcher_type == "alltoall", "tested",
            f"{MOE}test_layouts.py::test_layer_equals_dense_reference"),
    Feature("all-gather dispatch", "--moe-token-dispatcher-type allgather",
            lambda a: a.num_experts and a.moe_token_dispatcher_type == "allgather", "tested",
            f"{MOE}test_dispatchers.py::test_allgather_dispatcher"),
    Feature("DeepEP", f"--bf16 {EP2} --moe-token-dispatcher-type flex --moe-router-dtype fp32", _backend("deepep"), "kernels untested", FLEX),
    Feature("DeepEP in FP8", f"{IN_FP8} blockwise {EP2} --moe-token-dispatcher-type flex --moe-router-dtype fp32", _backend("deepep", True),
            "kernels untested", FLEX),
    Feature("HybridEP", f"--bf16 {EP2} --moe-token-dispatcher-type flex --moe-flex-dispatcher-backend hybridep", _backend("hybridep"),
            "kernels untested", FLEX),
    Feature("HybridEP in FP8", f"{IN_FP8} mxfp8 {EP2} --moe-token-dispatcher-type flex --moe-flex-dispatcher-backend hybridep",
            _backend("hybridep", True), "kernels untested", f"{MOE}test_row_dispatcher.py::*"),
    Feature("EP overlap", OVERLAP, lambda a: a.overlap_moe_expert_parallel_comm, "tested",
            f"{TRAINING}test_ep_overlap.py::test_interleaved_microbatches_train_the_same_to_the_bit"),
    Feature("delayed weight gradients", f"{OVERLAP} --delay-wgrad-compute", lambda a: a.delay_wgrad_compute, "kernels untested",
            f"{TRAINING}test_ep_overlap.py::test_interleaved_microbatches_train_the_same_to_the_bit"),
    Feature("weight gradients behind the dispatch", f"--bf16 {EP2} --overlap-dispatch-backward-with-experts-wgrad",
            lambda a: a.overlap_dispatch_backward_with_experts_wgrad, "kernels untested",
            f"{MOE}test_dispatchers.py::test_weight_gradients_beside_the_dispatchers_backward_pass"),
    Feature("CUDA graphs of layers", "--bf16 --cuda-graph-impl transformer_engine --cuda-graph-modules attn --te-rng-tracker",
            lambda a: a.cuda_graph_impl == "transformer_engine", "kernels untested", GRAPHS,
            f"{MOE}test_graphs.py::test_training_with_real_graphs"),
    Feature("CUDA graphs of whole steps", "--bf16 --cuda-graph-impl full_iteration --te-rng-tracker --no-check-for-nan-in-loss-and-grad",
            lambda a: a.cuda_graph_impl == "full_iteration", "refused", "who competes changes from step to step"),
    Feature("full recomputation", "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
            lambda a: a.recompute_granularity == "full", "tested", RECOMPUTED),
    Feature("recomputed experts", f"{SELECTIVE} moe", _recomputes("moe"), "tested", RECOMPUTED),
    Feature("recomputed norms, MLPs, shared experts, up projections", f"{SELECTIVE} layernorm mlp",
            _recomputes("layernorm", "mlp", "shared_experts", "mla_up_proj", "core_attn"), "tested", PUBLIC),
    Feature("recomputed activations of experts", f"--bf16 {SELECTIVE} moe_act --moe-grouped-gemm", _recomputes("moe_act"), "untested",
            PLANNED),
    Feature("activations on the host", "--bf16 --fine-grained-activation-offloading --offload-modules core_attn",
            lambda a: a.fine_grained_activation_offloading, "untested", "tests/plan/test_mixer_activations.py::test_offloaded_modules_are_on_the_host"),
    Feature("tensor, expert and pipeline parallelism", f"{EP2} --pipeline-model-parallel-size 2",
            lambda a: a.tensor_model_parallel_size * a.expert_model_parallel_size * a.pipeline_model_parallel_size > 1, "tested", LAYOUTS),
    Feature("context parallelism", "--bf16 --context-parallel-size 2", lambda a: a.context_parallel_size > 1, "tested",
            "tests/launch/test_cpu_context.py::test_training_is_that_of_one_rank"),
)  # fmt: skip
"""How rows travel, and what runs when."""

PRECISION = (
    Feature("FP8, delayed scaling", f"{IN_FP8} delayed", _fp8("delayed"), "kernels untested", f"{MOE}test_fp8.py::test_a_module_stays_one_that_trains_in_fp8", FP8),
    Feature("FP8, a scale a tensor", f"{IN_FP8} tensorwise", _fp8("tensorwise"), "kernels untested", f"{MOE}test_fp8.py::test_a_module_stays_one_that_trains_in_fp8", FP8),
    Feature("FP8, blockwise scaling", f"{IN_FP8} blockwise", _fp8("blockwise"), "kernels untested", f"{MOE}test_fp8.py::test_a_module_stays_one_that_trains_in_fp8", FP8),
    Feature("MXFP8", f"{IN_FP8} mxfp8", _fp8("mxfp8"), "kernels untested", f"{MOE}test_fp8.py::test_a_module_stays_one_that_trains_in_fp8", FP8),
    Feature("FP8 parameters", f"{IN_FP8} blockwise --fp8-param-gather --use-distributed-optimizer", lambda a: a.fp8_param_gather,
            "untested", "tests/plan/test_precision.py::test_fp8_parameters_leave_the_copies_alone",
            f"{MOE}test_fp8.py::test_a_competing_step_runs_on_this_steps_weights"),
    Feature("NVFP4", "--bf16 --fp4-format e2m1", lambda a: a.fp4, "refused", "the scoring pass does not pad its tokens"),
    Feature("precision-aware optimizer", "--bf16 --use-distributed-optimizer --use-precision-aware-optimizer",
            lambda a: a.use_precision_aware_optimizer, "untested", "tests/plan/test_optimizer.py::test_precision_aware_optimizer"),
    Feature("optimizer on the host", "--bf16 --use-distributed-optimizer --use-precision-aware-optimizer --optimizer-cpu-offload",
            lambda a: a.optimizer_cpu_offload, "untested",
            "tests/plan/test_optimizer.py::test_an_offloaded_share_is_on_the_host_and_takes_its_time"),
    Feature("Muon", "--bf16 --optimizer muon", lambda a: "muon" in a.optimizer, "untested", "tests/plan/test_optimizer.py::test_muon_multiplies"),
    Feature("Megatron-FSDP", f"{FSDP} --use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params",
            lambda a: a.use_megatron_fsdp, "untested", "tests/plan/test_sharding.py::test_fully_sharded"),
    Feature("instances of the distributed optimizer", "--bf16 --use-distributed-optimizer --num-distributed-optimizer-instances 2",
            lambda a: a.num_distributed_optimizer_instances > 1, "untested",
            "tests/plan/test_sharding.py::test_instances_share_the_state_out_over_fewer_ranks"),
)  # fmt: skip
"""Precision, optimizer and data parallelism."""

MODEL = (
    Feature("latent attention", MLA, lambda a: a.multi_latent_attention, "tested", MODELS),
    Feature("multi-token prediction", "--mtp-num-layers 1", lambda a: a.mtp_num_layers, "tested", MODELS),
    Feature("gated delta nets", GDN, lambda a: a.experimental_attention_variant == "gated_delta_net" or "G" in (a.hybrid_layer_pattern or ""),
            "tested", MODELS),
    Feature("output gate of attention", "--attention-output-gate", lambda a: a.attention_output_gate, "tested", MODELS),
    Feature("hybrid models", "--num-layers=false --hybrid-layer-pattern ME*E --mamba-num-heads 4 --mamba-head-dim 8 --mamba-state-dim 8 --mamba-num-groups 2",
            lambda a: a.hybrid_layer_pattern, "tested", MODELS),
    Feature("learned attention sinks", "--softmax-type learnable", lambda a: a.softmax_type == "learnable", "tested", MODELS),
    Feature("some dense layers", "--moe-layer-freq [0,1,1,1]", lambda a: a.num_experts and a.moe_layer_freq != 1, "tested",
            f"{MOE}test_specs.py::test_only_moe_layers_are_replaced_and_megatrons_specs_stay"),
)  # fmt: skip
"""What the layers are."""

TOWER = (
    "--vision-model-type siglip --vision-num-layers 2 --vision-hidden-size 24 --vision-num-attention-heads 2 --img-h 16 "
    "--img-w 16 --patch-dim 8"
)

VISION = (
    Feature("SigLIP tower", TOWER, lambda a: a.vision_model_type == "siglip", "tested", STATES),
    Feature("CLIP tower", TOWER.replace("siglip", "clip"), lambda a: a.vision_model_type == "clip", "tested", STATES),
    Feature("experts in the tower", f"{TOWER} --experts-in vision", _experts_in("vision"), "tested", BIASED_EXPERTS),
    Feature("experts in the projector", f"{TOWER} --experts-in projector", _experts_in("projector"), "tested", BIASED_EXPERTS),
    Feature("experts in the decoder of a vision-language model", f"{TOWER} --experts-in vision projector language",
            _experts_in("language"), "tested", f"{SEEING}test_layouts.py::test_ranks_of_text_beside_ranks_of_images_are_one_rank"),
    Feature("other experts in tower and projector", f"{TOWER} --experts-in vision projector language --vision-num-experts 4",
            lambda a: a.vision_model_type and (a.vision_num_experts or a.vision_router_topk), "tested",
            f"{SEEING}test_parts.py::test_parts_may_have_their_own_number_of_experts"),
    Feature("frozen parts", f"{TOWER} --experts-in projector --freeze-ViT --freeze-LM",
            lambda a: a.freeze_LM or a.freeze_ViT or a.freeze_projector, "tested", f"{SEEING}test_model.py::test_frozen_parts_have_no_gradient"),
    Feature("recomputed tower", f"{TOWER} --recompute-vision {SELECTIVE} moe", lambda a: a.recompute_vision, "tested",
            f"{SEEING}test_layouts.py::test_recomputation_changes_no_bit"),
    Feature("several tiles of a picture", f"{TOWER} --use-tiling --max-num-tiles 2", lambda a: a.use_tiling, "tested",
            f"{CONVERSATIONS}test_pixels.py::test_tiles_are_processed_as_images"),
    Feature("batches by modality", f"{TOWER} --group-by-modality", lambda a: a.group_by_modality, "tested",
            f"{CONVERSATIONS}test_dataset.py::test_grouped_batches_have_images_or_none"),
    Feature("packed conversations", f"{TOWER} --bf16 --pack-conversations --micro-batch-size 1", lambda a: a.pack_conversations, "kernels untested",
            f"{CONVERSATIONS}test_sample.py::test_a_pack_is_its_conversations_side_by_side"),
)  # fmt: skip
"""What stands before a decoder, and what it sees. Tensor, context and virtual pipeline parallelism are refused before
Megatron validates such a job (`layout/vision_rules.py`)."""

SECTIONS: dict[str, tuple[Feature, ...]] = {
    "Router": ROUTER,
    "Experts": EXPERTS,
    "Dispatch and schedule": SCHEDULES,
    "Precision, optimizer and data parallelism": PRECISION,
    "Model": MODEL,
    "Vision-language models": VISION,
}
FEATURES = tuple(feature for section in SECTIONS.values() for feature in section)
"""All rows."""


def features_of(args: argparse.Namespace) -> tuple[Feature, ...]:
    """The rows that validated arguments ask for, in the table's order."""
    return tuple(feature for feature in FEATURES if feature.applies(args))
