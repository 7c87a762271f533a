"""The symbols that are replaced: what, why, and the test that says when the replacement can go."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Symbols of one module or class that are replaced for one reason."""

    owner: str
    """"module" or "module:Class"."""
    names: tuple[str, ...]
    why: str
    """Ends the sentence "it is replaced because"."""
    test: str
    """"tests/FILE.py::NAME"; fails when upstream no longer needs it."""

    @property
    def symbols(self) -> tuple[str, ...]:
        """Each as "module:name" or "module:Class.name"."""
        return tuple(f"{self.owner}{'.' if ':' in self.owner else ':'}{name}" for name in self.names)


LOOP = "megatron.training.training"
ASYNC_WRITER = "megatron.core.dist_checkpointing.strategies.filesystem_async"

PLANNED = "Megatron's checks of arguments ask this host for what the planned one has"

CPU = "tests/launch/test_cpu_backend.py"
CPU_KERNELS, CPU_MODULES = "tests/launch/test_cpu_kernels.py", "tests/launch/test_cpu_modules.py"
HOOKS = "tests/upstream/test_hooks.py::test_megatron_still_has_no_hook_there"
SAVING = "tests/resilience/saving/test_guard.py::test_upstream_still_needs_it"
CAUSES = "tests/resilience/saving/test_causes.py::test_upstream_still_needs_it"
OPTIMIZER = "tests/resilience/resuming/test_optimizer.py"
PRETEND = "tests/plan/test_job.py::test_pretending_is_still_needed"
LOSS_TOKENS = "tests/moe/test_loss_tokens.py::test_upstream_still_takes_the_layers_tokens"
INDEX_CACHE = "tests/training/test_index_cache.py::test_upstream_still_writes_in_place"

TORCH_CUDA = (
    "current_device", "device_count", "set_device", "Stream", "Event", "current_stream", "default_stream", "set_stream",
    "stream", "synchronize", "empty_cache", "memory_stats", "memory_allocated", "max_memory_allocated", "memory_reserved",
    "max_memory_reserved", "device_memory_used", "get_rng_state", "set_rng_state", "manual_seed",
    "get_device_capability", "get_device_properties", "is_current_stream_capturing",
)  # fmt: skip
FUSED_ROPE = ("fused_apply_rotary_pos_emb", "fused_apply_rotary_pos_emb_thd")
FUSED_PERMUTE = (
    "fused_permute", "fused_permute_with_probs", "fused_sort_chunks_by_index",
    "fused_sort_chunks_by_index_with_probs", "fused_unpermute",
)  # fmt: skip

ON_CPU = (
    Row("torch.cuda", TORCH_CUDA, "Megatron's trainer calls it also where there is no CUDA device", f"{CPU}::test_megatron_still_calls_it"),
    Row("torch.cuda.nvtx", ("range_push", "range_pop"), "Megatron marks ranges for a profiler that needs CUDA", f"{CPU}::test_megatron_still_calls_it"),
    Row("torch:Tensor", ("record_stream",), "Megatron tells the allocator which streams use a tensor, and a stream that stands in is none", f"{CPU}::test_megatron_still_calls_it"),
    Row("torch.nn:Module", ("cuda",), "Megatron moves every model to a CUDA device", f"{CPU}::test_megatron_still_calls_it"),
    Row("torch.distributed", ("all_to_all_single",), "Megatron's dispatcher passes the sizes of parts as a tensor, which is a sequence only once it came from CUDA", f"{CPU}::test_gloo_still_refuses_what_megatron_asks"),
    Row("torch.distributed", ("all_gather",), "Megatron's dispatcher passes parts of unequal size, gloo takes equal ones", f"{CPU}::test_gloo_still_refuses_what_megatron_asks"),
    Row("megatron.core.tensor_parallel.random", ("_get_cuda_rng_state", "_set_cuda_rng_state"), "they read torch's CUDA generators, of which a host without CUDA has none", f"{CPU}::test_upstream_still_needs_the_stand_ins"),
    Row("megatron.core.tensor_parallel.random", ("_get_share_storage",), "it compiles an extension when recomputed activations come back", f"{CPU}::test_upstream_still_needs_the_stand_ins"),
    Row("megatron.core.tensor_parallel.random:CheckpointWithoutOutput", ("__init__",), "it takes a default of False for FP8 and asks Transformer Engine about it", f"{CPU}::test_upstream_still_needs_the_stand_ins"),
    Row("megatron.core.fusions.fused_softmax", ("get_default_causal_mask",), "it asks for a CUDA device by name, also in a recomputed pass, where nothing answers for one", f"{CPU}::test_upstream_still_needs_the_stand_ins"),
    Row("megatron.core.transformer.torch_norm:WrappedTorchNorm", ("__new__",), "it refuses sequence parallelism, which lacks nothing but a mark on its weights, and --apply-layernorm-1p", f"{CPU_MODULES}::test_upstream_still_needs_them"),
    Row("megatron.core.models.backends", ("DotProductAttention",), "it takes no sizes of latent keys and values", f"{CPU_MODULES}::test_upstream_still_needs_them"),
    Row("megatron.core.models.hybrid.hybrid_layer_specs", ("hybrid_stack_spec",), "hybrid layers are of Transformer Engine's modules alone", f"{CPU_MODULES}::test_upstream_still_needs_them"),
    Row("megatron.training.models.hybrid", ("default_hybrid_stack_spec",), "hybrid layers are of Transformer Engine's modules alone", f"{CPU_MODULES}::test_upstream_still_needs_them"),
    Row("megatron.core.models.hybrid.hybrid_block", ("TENorm",), "the final norm is Transformer Engine's, whatever the spec", f"{CPU_MODULES}::test_upstream_still_needs_them"),
    Row("megatron.core.transformer.multi_latent_attention", ("TELinear",), "it knows a layer that ranks have whole by this name alone", f"{CPU_MODULES}::test_upstream_still_needs_them"),
    Row("megatron.core.transformer.experimental_attention_variant.absorbed_mla", ("TELinear",), "as for multi_latent_attention", f"{CPU_MODULES}::test_upstream_still_needs_them"),
    Row("megatron.core.transformer.mla_qk_norm_config", ("get_backend",), "latent attention without --q-lora-rank takes its norm within a linear layer alone, which local modules have none of", f"{CPU_MODULES}::test_upstream_still_needs_them"),
    Row("megatron.core.models.gpt.gpt_layer_specs", ("get_gpt_layer_local_submodules",), "its latent attention loses gradients of the keys' rotated part between tensor parallel ranks", f"{CPU_MODULES}::test_upstream_still_needs_them"),
    Row("megatron.core.transformer.attention", ("TENorm",), "--qk-layernorm of a hybrid model means Transformer Engine's", f"{CPU_MODULES}::test_upstream_still_needs_them"),
    Row("megatron.core.models.gpt.experimental_attention_variant_module_specs", ("_get_backend_spec_provider", "_get_self_attention_module_spec"), "layers of these variants are of Transformer Engine's modules alone", f"{CPU_MODULES}::test_upstream_still_needs_them"),
    Row("megatron.core.ssm.mamba_mixer", ("HAVE_MAMBA_SSM", "ExtendedRMSNorm", "mamba_split_conv1d_scan_combined"), "mamba_ssm has its kernels for CUDA alone", f"{CPU_KERNELS}::test_upstream_still_needs_them"),
    Row("megatron.core.transformer.experimental_attention_variant.dsa", ("hadamard_transform",), "fast_hadamard_transform has its kernel for CUDA alone", f"{CPU_KERNELS}::test_upstream_still_needs_them"),
    Row("megatron.core.ssm.gated_delta_net.common", ("HAVE_FLA", "l2norm"), "flash-linear-attention has its kernels for CUDA alone", f"{CPU_KERNELS}::test_upstream_still_needs_them"),
    Row("megatron.core.ssm.gated_delta_net.gdn", ("causal_conv1d", "chunk_gated_delta_rule"), "flash-linear-attention has its kernels for CUDA alone", f"{CPU_KERNELS}::test_upstream_still_needs_them"),
    Row("megatron.core.transformer.moe.moe_layer", ("HAVE_TE", "TELinear"), "the projections of a latent MoE have a form in Transformer Engine alone", f"{CPU}::test_upstream_still_needs_the_stand_ins"),
    Row(LOOP, ("initialize_megatron",), "it asserts that there is CUDA unless its caller says otherwise", f"{CPU}::test_upstream_still_needs_the_stand_ins"),
    Row("torch.distributed.launcher.api", ("LocalElasticAgent",), "torchrun kills ranks 30 s after SIGTERM, in the midst of a save", "tests/upstream/test_hooks.py::test_torchrun_still_takes_no_other_agent"),
)  # fmt: skip
"""`launch/cpu_*.py`, and the agent that starts ranks on any host."""

AROUND_THE_LOOP = (
    Row("megatron.core.datasets.utils", ("compile_helpers",), "its wheel has the compiled helpers and no Makefile to compile them by", "tests/training/test_dataset_helpers.py::test_the_wheel_needs_no_compiling"),
    Row(LOOP, ("training_log",), "progress.json and the mean FLOPs of a line need to know when a line is logged", HOOKS),
    Row(LOOP, ("num_floating_point_operations",), "Megatron's count knows no scoring pass", HOOKS),
    Row(LOOP, ("consume_seqlen_stats_in_iteration",), "it empties a packed step's numbers of tokens, which the probe counts operations by before the loop does", HOOKS),
    Row("megatron.training.models.gpt", ("mtp_block_spec",), "it builds no layers of multi-token prediction beside an experimental attention variant", "tests/training/test_mtp_of_variants.py::test_upstream_still_refuses_it"),
    Row(LOOP, ("train_step",), "the probe runs between steps, and its clock around them", HOOKS),
    Row(LOOP, ("train", "checkpoint_and_decide_exit"), "Megatron leaves its loop with sys.exit() and does not say why", HOOKS),
    Row(LOOP, ("write_args_to_tensorboard",), "a resumed run's TensorBoard session must begin once the checkpoint's iteration is known", HOOKS),
    Row("torch.utils.tensorboard:SummaryWriter", ("add_scalar", "flush"), "Megatron logs scalars by samples into the folder of those by iterations, where one session mark holds for both", "tests/resilience/resuming/test_event_log.py::test_upstream_still_logs_by_samples_through_the_same_writer"),
    Row("megatron.training.dist_signal_handler:DistributedSignalHandler", ("signals_received",), "it gathers one number from each rank at each step and reads them one by one", "tests/resilience/stopping/test_leave.py::test_upstream_still_gathers_the_signal_from_all_ranks_at_every_step"),
    Row("builtins", ("print",), "Megatron prints why it exits, and raises a SystemExit without a word", "tests/resilience/stopping/test_exits.py::test_upstream_still_says_why_by_print_alone"),
    Row("megatron.core.rerun_state_machine:RerunStateMachine", ("_save_state", "_restore_state"), "it winds back random state and data, and no buffers of the model", "tests/resilience/test_rerun.py::test_upstream_still_winds_back_no_buffers"),
    Row("megatron.core.transformer.moe.router:TopKRouter", ("gating",), "a router's forward pass returns no logits, from which the probe takes its statistics", "tests/training/test_probe.py::test_upstream_routers_still_return_no_logits"),
    Row("megatron.core.transformer.moe.router:TopKRouter", ("_apply_expert_bias",), "it lays a mask of tokens over experts", "tests/vlm/test_padding.py::test_upstream_still_lays_the_mask_over_experts"),
    Row("megatron.core.transformer.moe.router:TopKRouter", ("forward", "attach_and_log_load_balancing_loss", "apply_z_loss"), "under --calculate-per-token-loss it multiplies its losses by the layer's tokens, where gradients are divided by those that the loss counts", LOSS_TOKENS),
    Row("megatron.core.datasets.gpt_dataset", ("numpy", "safe_numpy_load"), "it writes cache files in place, and a kill leaves half a file", INDEX_CACHE),
    Row("megatron.core.datasets.blended_dataset", ("numpy", "safe_numpy_load"), "as for gpt_dataset", INDEX_CACHE),
)  # fmt: skip
"""What the training loop calls and offers no hook for."""

SAVING_AND_LOADING = (
    Row(LOOP, ("save_checkpoint", "maybe_finalize_async_save"), "what rank 0 fails at after the shards leaves the others waiting", SAVING),
    Row("megatron.core.dist_checkpointing", ("save",), "after it all ranks must know whether rank 0 finished", SAVING),
    Row("megatron.core.dist_checkpointing.serialization", ("save_config", "save_integrity_manifest"), "rank 0 alone writes them, and raises alone", SAVING),
    Row("torch.distributed.checkpoint.filesystem:FileSystemWriter", ("finish",), "rank 0 alone writes .metadata, and raises alone", SAVING),
    Row("megatron.training.checkpointing", ("maybe_msc",), "the tracker file is truncated before it is written, and a kill leaves it empty", SAVING),
    Row(ASYNC_WRITER, ("_results_queue",), "Megatron starts a process for this queue, which a rank that is killed leaves behind", SAVING),
    Row(f"{ASYNC_WRITER}:FileSystemWriterAsync", ("get_save_function_and_args", "write_preloaded_data"), "the system's error behind a failed write is dropped", CAUSES),
    Row("megatron.core.dist_checkpointing.strategies.async_utils:PersistentAsyncCaller", ("_get_process",), "Megatron waits for ever for a writer process that is gone", "tests/resilience/saving/test_worker.py::test_upstream_still_waits_without_a_look_at_the_process"),
    Row("megatron.training.checkpointing", ("read_metadata",), "Megatron exits over an unreadable tracker also where --ckpt-step names the iteration", SAVING),
    Row("megatron.training.checkpointing", ("check_checkpoint_args",), "it compares a checkpoint's arguments with the running ones, and there is no hook for more", HOOKS),
    Row(LOOP, ("load_checkpoint",), "an optimizer's parameter groups are known again by their learning rates, which may have changed", f"{OPTIMIZER}::test_upstream_still_knows_groups_by_their_rates"),
    Row("megatron.core.optimizer:ChainedOptimizer", ("load_state_dict",), "state of another expert parallel size comes in other groups", f"{OPTIMIZER}::test_upstream_still_stops"),
    Row("megatron.core.optimizer.distrib_optimizer:DistributedOptimizer", ("state_dict", "load_state_dict", "_set_main_param_and_optimizer_states"), "without Apex and Transformer Engine it cannot load what it saved: torch's Adam keeps its step among the tensors", f"{OPTIMIZER}::test_upstream_still_takes_torchs_step_for_a_tensor"),
)  # fmt: skip
"""Checkpoints: `resilience/saving/` and `resilience/resuming/`."""

WHILE_PLANNING = (
    Row("torch.cuda", ("is_available",), PLANNED, PRETEND),
    Row("megatron.core.utils", ("_te_version",), PLANNED, PRETEND),
    Row("megatron.core.models.common.embeddings.rope_utils", FUSED_ROPE, PLANNED, PRETEND),
    Row("megatron.core.transformer.moe.moe_utils", FUSED_PERMUTE, PLANNED, PRETEND),
)  # fmt: skip
"""`plan/pretend.py`: a GPU job's arguments are checked on a host without one."""

ROWS: tuple[Row, ...] = ON_CPU + AROUND_THE_LOOP + SAVING_AND_LOADING + WHILE_PLANNING

TABLE: dict[str, Row] = {symbol: row for row in ROWS for symbol in row.symbols}
"""Symbol -> its row."""
