#!/usr/bin/env python3
"""Is a checkpoint whole, and the same model as its Hugging Face folder? `megatron-compete verify` under the name that Megatron-LM's users look for."""

from megatron_compete.cli import main

if __name__ == "__main__":
    main("verify")
