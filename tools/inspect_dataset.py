#!/usr/bin/env python3
"""Check a dataset and show what it holds; `--help` lists the flags."""

from megatron_compete.data.inspect_dataset import main
from megatron_compete.errors import run_command

if __name__ == "__main__":
    run_command(main)
