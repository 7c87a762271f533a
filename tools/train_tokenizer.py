#!/usr/bin/env python3
"""Train a SentencePiece tokenizer on a corpus; `--help` lists the flags."""

from megatron_compete.data.tokenizer import main
from megatron_compete.errors import run_command

if __name__ == "__main__":
    run_command(main)
