"""Checkpoints to other formats: read Megatron's `torch_dist` in one process, write a Hugging Face folder.

location.py            which folder holds the checkpoint, and is it whole
restricted.py          unpickling that runs nothing from the file
reader.py              arguments and tensors of a torch_dist checkpoint, slice by slice
representable.py       what Mixtral cannot say: the table of refusals
mixtral.py             Megatron's arguments and tensors as Mixtral's
tokenizer.py           a SentencePiece model as a fast tokenizer
tokenizer_merges.py    its merges
tokenizer_proof.py     that both give the same ids
safetensors_writer.py  shards and their index
model_card.py          the README.md of an exported model
export.py              all of it in order, and the command line
"""
