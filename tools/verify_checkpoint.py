#!/usr/bin/env python3
"""Is a checkpoint whole, and the same model as its Hugging Face folder? `--help` lists the flags."""

from megatron_compete.common.errors import run_command
from megatron_compete.verify.conversion import main

if __name__ == "__main__":
    run_command(main)
