#!/usr/bin/env python3
"""Merge datasets into one; `--help` lists the flags."""

from megatron_compete.data.merge import main
from megatron_compete.errors import run_command

if __name__ == "__main__":
    run_command(main)
