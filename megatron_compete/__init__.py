"""Competition routing (CompeteSMoE, arXiv 2505.13380) for mixture-of-experts pretraining on Megatron-Core."""

__version__ = "0.2.0"
