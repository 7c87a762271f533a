"""Checkpoints in and out: Megatron's `torch_dist` in one process, Hugging Face folders both ways.

families/              architectures that both sides express: arguments, tensors, config.json
location.py            which folder holds the checkpoint, and is it whole
restricted.py          unpickling that runs nothing from the file
reader.py              arguments and tensors of a torch_dist checkpoint, slice by slice
plan.py                a family's tensors bound to one checkpoint
tokenizer.py           a SentencePiece model as a fast tokenizer
tokenizer_merges.py    its merges
tokenizer_proof.py     that both give the same ids
export_tokenizer.py    which tokenizer an export gets
hf_tokenizer.py        a Hugging Face tokenizer's files, special ids and generation settings
safetensors_writer.py  shards and their index, tensor by tensor
model_card.py          the README.md of an exported model
custom_code/           modeling files for what no stock architecture computes
output.py              all of a folder or nothing
export.py              Megatron to Hugging Face
options.py             what both directions are told, apart from what imports torch
"""
