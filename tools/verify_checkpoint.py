#!/usr/bin/env python3
"""Compare a Megatron checkpoint with its Hugging Face export on text; `--help` lists the flags."""

from megatron_compete.errors import run_command
from megatron_compete.training.verify import main

if __name__ == "__main__":
    run_command(main)
