"""Vision-language models in Megatron's trainer: their configuration, data, step and floating-point operations."""
