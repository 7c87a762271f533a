"""Competition routing inside Megatron-Core's MoE layer. Shapes are named as in `megatron_compete.routing`."""
