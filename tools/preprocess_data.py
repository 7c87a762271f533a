#!/usr/bin/env python3
"""Tokenise a corpus into Megatron's .bin/.idx; `--help` lists the flags."""

from megatron_compete.data.preprocess import main
from megatron_compete.errors import run_command

if __name__ == "__main__":
    run_command(main)
