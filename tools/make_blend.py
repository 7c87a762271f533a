#!/usr/bin/env python3
"""Turn datasets and weights into a --data-path; `megatron-compete blend` under the name that Megatron-LM's users look for."""

from megatron_compete.cli import main

if __name__ == "__main__":
    main("blend")
