"""Checkpoints in and out: Megatron's `torch_dist` in one process, Hugging Face folders both ways.

families/              architectures that both sides express: key tables, arguments, config.json
location.py            which folder holds the checkpoint
integrity.py           is it whole: its files against its index
restricted.py          unpickling that runs nothing from the file
reader.py              arguments and tensors of a torch_dist checkpoint, slice by slice
megatron_writer.py     a torch_dist checkpoint, chunk by chunk
hf_reader.py           configuration and tensors of a Hugging Face folder; fused_experts.py: experts stored in one tensor
safetensors_reader.py, safetensors_writer.py   one tensor in memory at a time
plan.py                a family's rules bound to one checkpoint
export.py              Megatron to Hugging Face; prepared.py: what is decided before the first tensor
import_hf.py           Hugging Face to Megatron; import_recipe.py: the recipe that trains it
chunks.py              every tensor of a model, to be written; source.py: a model to import, as it was read
upcycle.py             a dense model as a mixture of experts
tokenizer.py           a SentencePiece model as a fast tokenizer; tokenizer_proof.py: that both give the same ids
export_tokenizer.py    which tokenizer an export gets
hf_tokenizer.py        a Hugging Face tokenizer's files, special ids and generation settings
model_card.py          the README.md of an exported model
vlm/                   the same of vision-language models, part by part
custom_code/           modeling files for what no stock architecture computes
output.py              all of a folder or nothing
texts.py               texts to check a conversion on
options.py             what both directions are told, apart from what imports torch
"""
