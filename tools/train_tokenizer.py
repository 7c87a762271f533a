#!/usr/bin/env python3
"""Train a SentencePiece tokenizer on a corpus; `--help` lists the flags."""

from megatron_compete.common.errors import run_command
from megatron_compete.data.tokenizer import main

if __name__ == "__main__":
    run_command(main)
