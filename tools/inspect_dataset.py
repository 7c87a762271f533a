#!/usr/bin/env python3
"""Check a dataset and show what it holds; `megatron-compete inspect` under the name that Megatron-LM's users look for."""

from megatron_compete.cli import main

if __name__ == "__main__":
    main("inspect")
