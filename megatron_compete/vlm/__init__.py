"""Vision-language models: a vision tower and a projector before Megatron's decoder, whose MLPs may be competing layers.

config.py        settings of tower and projector, from which flags are made
transformers.py  a TransformerConfig for each part, from that of all arguments
validation.py    what such a model cannot do, by Megatron's flag
parts.py         the parts in order, and how their layers are counted
exchange.py      what stands for the MoE layers of each part: competition, top-K, a baseline
tower.py         Megatron's SigLIP and CLIP towers as LLaVA takes them
projector.py     an MLP, or a layer of experts whose output is of other width than its input
padding.py       what routers are given and are not to count
model.py         LLaVAModel with all of it
"""
