#!/usr/bin/env python3
"""Turn datasets and weights into a --data-path; `--help` lists the flags."""

from megatron_compete.common.errors import run_command
from megatron_compete.data.blend import main

if __name__ == "__main__":
    run_command(main)
