#!/usr/bin/env python3
"""Merge datasets into one; `--help` lists the flags."""

from megatron_compete.common.errors import run_command
from megatron_compete.data.merge import main

if __name__ == "__main__":
    run_command(main)
