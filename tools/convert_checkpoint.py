#!/usr/bin/env python3
"""Convert checkpoints between Megatron and Hugging Face; `megatron-compete convert` under the name that Megatron-LM's users look for."""

from megatron_compete.cli import main

if __name__ == "__main__":
    main("convert")
