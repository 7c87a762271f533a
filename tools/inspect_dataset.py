#!/usr/bin/env python3
"""Check a dataset and show what it holds; `--help` lists the flags."""

from megatron_compete.common.errors import run_command
from megatron_compete.data.inspect_dataset import main

if __name__ == "__main__":
    run_command(main)
