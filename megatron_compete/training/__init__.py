"""The trainer's entry, on `megatron.training.pretrain`.

pretrain.py          the entry of a rank: model, datasets and forward step for Megatron's trainer
spec.py              competing layers for any other trainer: `--spec megatron_compete.training.spec compete_layer_spec`
parse.py             arguments, parsed, checked and validated
job_check.py         would this job train: what trainer, plan, submit and dry runs ask
renamed.py           flags of other versions of Megatron
arguments.py         our flags beside Megatron's, and what is checked before anything is built
data_arguments.py    Megatron's data flags: which files they name
presets.py           sets of defaults (`--compete-preset`)
refused.py           flags of Megatron's that would be ignored, or end in a traceback
local_paths.py       paths in object storage are refused
argument_help.py     the trainer's `--help`
data_check.py        the data and its tokenizer, before the job starts
datasets.py          Megatron's datasets from its arguments
index_cache.py       whole files in Megatron's cache of indices
dataset_helpers.py   Megatron's compiled helpers, where its wheel brings them
batches.py           one microbatch, from the iterator to the loss
loss_mask.py         what the loss counts of it, on every pipeline stage
metrics.py           when the trainer logs the metrics of `moe/metrics.py`
flops.py             the scoring pass in the trainer's count of operations
probe.py             held-out loss and router statistics of a model
probe_log.py         the same while a job trains (`--probe-log`)
"""
