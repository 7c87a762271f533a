"""Vision-language models: a vision tower and a projector before Megatron's decoder, whose MLPs may be competing layers."""
