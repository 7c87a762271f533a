#!/usr/bin/env python3
"""Train a SentencePiece tokenizer on a corpus; `megatron-compete tokenizer` under the name that Megatron-LM's users look for."""

from megatron_compete.cli import main

if __name__ == "__main__":
    main("tokenizer")
