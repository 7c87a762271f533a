#!/usr/bin/env python3
"""Check visual instruction data and its images; `megatron-compete conversations` beside the other tools."""

from megatron_compete.cli import main

if __name__ == "__main__":
    main("conversations")
