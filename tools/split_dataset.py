#!/usr/bin/env python3
"""Split a dataset by documents; `--help` lists the flags."""

from megatron_compete.common.errors import run_command
from megatron_compete.data.split import main

if __name__ == "__main__":
    run_command(main)
