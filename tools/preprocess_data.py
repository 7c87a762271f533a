#!/usr/bin/env python3
"""Tokenise a corpus into Megatron's .bin/.idx; `megatron-compete preprocess` under the name that Megatron-LM's users look for."""

from megatron_compete.cli import main

if __name__ == "__main__":
    main("preprocess")
