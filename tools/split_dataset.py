#!/usr/bin/env python3
"""Split a dataset by documents; `--help` lists the flags."""

from megatron_compete.data.split import main
from megatron_compete.errors import run_command

if __name__ == "__main__":
    run_command(main)
