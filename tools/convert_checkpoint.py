#!/usr/bin/env python3
"""Convert a Megatron checkpoint into a Hugging Face folder; `--help` lists the flags."""

from megatron_compete.checkpoint.export import main
from megatron_compete.errors import run_command

if __name__ == "__main__":
    run_command(main)
