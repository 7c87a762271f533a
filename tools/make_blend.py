#!/usr/bin/env python3
"""Turn datasets and weights into a --data-path; `--help` lists the flags."""

from megatron_compete.data.blend import main
from megatron_compete.errors import run_command

if __name__ == "__main__":
    run_command(main)
