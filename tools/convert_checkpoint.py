#!/usr/bin/env python3
"""Convert checkpoints between Megatron and Hugging Face; `--help` lists the flags."""

from megatron_compete.cli.convert import main
from megatron_compete.common.errors import run_command

if __name__ == "__main__":
    run_command(main)
