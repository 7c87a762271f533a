#!/usr/bin/env python3
"""Merge datasets into one; `megatron-compete merge` under the name that Megatron-LM's users look for."""

from megatron_compete.cli import main

if __name__ == "__main__":
    main("merge")
