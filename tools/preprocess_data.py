#!/usr/bin/env python3
"""Tokenise a corpus into Megatron's .bin/.idx; `--help` lists the flags."""

from megatron_compete.common.errors import run_command
from megatron_compete.data.preprocess import main

if __name__ == "__main__":
    run_command(main)
