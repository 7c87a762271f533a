#!/usr/bin/env python3
"""Split a dataset by documents; `megatron-compete split` under the name that Megatron-LM's users look for."""

from megatron_compete.cli import main

if __name__ == "__main__":
    main("split")
