"""What a pipeline asks of layers and microbatches."""

from collections.abc import Iterable

from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

from megatron_compete.layout.facts import Facts, multiple


def layers(f: Facts) -> Iterable[str]:
    """`validate_args`, `TransformerConfig.__post_init__`, `get_num_layers_to_build` (transformer_block.py)."""
    args = f.args
    if f.is_hybrid or args.pipeline_model_parallel_layout is not None:
        return  # Megatron reads pattern and layout whole; what is wrong with them is in its own message
    ends = (args.decoder_first_pipeline_num_layers, args.decoder_last_pipeline_num_layers)
    layers, stages = f.split_layers, f.pp
    if any(ends):
        layers, stages = layers - sum(end or 0 for end in ends), stages - sum(end is not None for end in ends)
    if layers < 0 or bool(layers) != bool(stages) or (stages and layers % stages):
        yield (
            f"{layers} layers remain for {stages} pipeline stages and do not divide: change --num-layers, "
            "--pipeline-model-parallel-size or --decoder-first/last-pipeline-num-layers"
            if any(ends)
            else f"--num-layers {args.num_layers} (with embedding and loss where they are counted: {layers}) does not "
            f"divide over --pipeline-model-parallel-size {f.pp}: change one, or give "
            "--decoder-first-pipeline-num-layers"
        )
        return
    per_virtual = args.num_layers_per_virtual_pipeline_stage
    of_a_stage = {*(end for end in ends if end), *([layers // stages] if stages else [])}
    if per_virtual is not None and any(ends):
        return  # excluded by Megatron, in its own words
    if per_virtual is not None and (f.split_layers // f.pp) % per_virtual:
        yield (
            f"--num-layers-per-virtual-pipeline-stage {per_virtual} does not divide the {f.split_layers // f.pp} layers "
            "of a stage: give a divisor"
        )
    elif f.vp and any(count % f.vp for count in of_a_stage):
        counts = ", ".join(str(count) for count in sorted(of_a_stage))
        yield (
            f"a stage's layers ({counts}) do not divide into {f.vp} model chunks: change "
            "--num-virtual-stages-per-pipeline-rank or the layers of a stage"
        )


def prediction(f: Facts) -> Iterable[str]:
    """`_allreduce_embedding_grad` (finalize_model_grads.py), `setup_embeddings_and_output_layer` (language_module.py):
    copies of the embedding are kept alike between stages, and on the stages after the first in the last chunk alone."""
    layout = f.args.pipeline_model_parallel_layout
    if not isinstance(layout, str) or not f.args.mtp_num_layers or f.pp < 2:
        return
    chunks = PipelineParallelLayerLayout.parse_str_to_list(layout)
    last_round = len(chunks) - f.pp
    for index, chunk in enumerate(chunks):
        if LayerType.mtp in chunk and index and (index % f.pp == 0 or index < last_round):
            yield (
                f"--pipeline-model-parallel-layout {layout} predicts later tokens in chunk {index // f.pp} of stage "
                f"{index % f.pp}, where Megatron would let its copy of the embedding go its own way: move m into the last "
                "chunk of a stage after the first"
            )


def interleaving(f: Facts) -> Iterable[str]:
    """`forward_backward_pipelining_with_interleaving`, megatron/core/pipeline_parallel/schedules.py."""
    if f.vp is None or f.vp < 2:
        return
    least = 2 if f.args.overlap_p2p_comm else 3
    if f.pp < least:
        yield (
            f"--pipeline-model-parallel-size {f.pp} is too small for {f.vp} model chunks a stage: give {least} or more, "
            "or no --num-virtual-stages-per-pipeline-rank"
        )
        return
    if f.args.global_batch_size is None:
        return
    microbatches = f.args.global_batch_size // (f.args.micro_batch_size * f.dp)
    group = f.args.microbatch_group_size_per_vp_stage or f.pp
    if not f.pp <= group <= max(microbatches, 1):
        yield (
            f"a pipeline's {microbatches} microbatches are fewer than its groups of {group} (at least "
            f"--pipeline-model-parallel-size {f.pp}): give --global-batch-size "
            f"{max(group, f.pp) * f.args.micro_batch_size * f.dp} or a smaller pipeline"
        )
    elif 0 < microbatches % group < f.pp:
        yield (
            f"a pipeline's {microbatches} microbatches in groups of {group} leave {microbatches % group}, fewer than "
            f"--pipeline-model-parallel-size {f.pp}: give --global-batch-size "
            f"{multiple(microbatches, group) * f.args.micro_batch_size * f.dp}"
        )
