"""Configuration of a LLaVA whose vision tower and projector may mix experts."""

from transformers import LlavaConfig

EXTRA = {
    "experts_in": ("vision", "projector"),
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "router_in_fp32": True,
    "projector_intermediate_size": None,
}
PARTS = ("vision", "projector")


class CompeteLlavaConfig(LlavaConfig):
    """A LLaVA's configuration, and what is mixed.

    Args:
        experts_in: parts whose MLPs are mixtures of experts: "vision", "projector", both or none.
        num_experts: experts of each mixture.
        num_experts_per_tok: experts a patch goes to.
        router_in_fp32: whether the routers' logits are computed in fp32.
        projector_intermediate_size: width of the projector's MLP, or of each of its experts; None: as wide as its output.
    """

    model_type = "competellava"

    def __init__(self, **given):
        extra = {name: given.pop(name, default) for name, default in EXTRA.items()}
        super().__init__(**given)
        extra["experts_in"] = list(extra["experts_in"])
        if not set(extra["experts_in"]) <= set(PARTS):
            raise ValueError(f"experts_in {extra['experts_in']} is not of {', '.join(PARTS)}")
        if not extra["projector_intermediate_size"]:
            extra["projector_intermediate_size"] = getattr(self.text_config, "hidden_size")  # noqa: B009  mypy: it may be a dict
        for name, value in extra.items():
            setattr(self, name, value)
