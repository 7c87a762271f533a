"""The MoE layers of a transformers model: what passes between router and experts, and sending tokens elsewhere.

T tokens, E experts, K experts of a token, H width of what the experts see.

In transformers 5 the block of every family hands its tokens to `experts(hidden [T, H], choices [T, K], weights [T, K])`, and
beside that module lies the router, `gate` or `router`, whose output begins with the logits of all experts [T, E]. Nothing
else of a family is used, so a family that is not known here works as soon as it has these two calls.
"""

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megatron_compete.common.errors import CompeteError

ROUTERS = ("gate", "router")
BIAS = "e_score_correction_bias"
"""What ranks experts beside their scores, and is no part of the weights (DeepSeek-V3)."""


@dataclass(frozen=True)
class Call:
    """What a layer's router sent to its experts."""

    hidden_TH: Tensor
    logits_TE: Tensor
    choices_TK: Tensor
    weights_TK: Tensor


Send = Callable[[Call], tuple[Tensor, Tensor] | None]
"""Other choices and weights [T, K'] for the experts, or None for the router's own."""


@dataclass(frozen=True, eq=False)
class MoeLayer:
    """One MoE layer of a model."""

    number: int
    """Of the model's layer, from 0."""
    name: str
    router: nn.Module
    experts: nn.Module
    count: int
    """E."""
    top_k: int
    """K."""

    @property
    def router_weight(self) -> Tensor:
        """[E, hidden size]."""
        weight = self.router.weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    @property
    def bias(self) -> Tensor | None:
        """[E] in fp32: what is added to scores to rank experts; None without."""
        bias = getattr(self.router, BIAS, None)
        return None if bias is None else bias.detach().float()

    def all_outputs(self, hidden_TH: Tensor, weights_dtype: torch.dtype) -> Tensor:
        """Every expert's output for every token, [E, T, H]."""
        tokens = len(hidden_TH)
        rows = hidden_TH.repeat(self.count, 1)
        choices = torch.arange(self.count, device=rows.device).repeat_interleave(tokens)[:, None]
        ones = torch.ones(len(rows), 1, dtype=weights_dtype, device=rows.device)
        outputs: Tensor = self.experts.forward(rows, choices, ones)  # past the hooks
        return outputs.view(self.count, tokens, -1)

    def expert_weights(self) -> Iterator[Tensor]:
        """The experts' parameters one after the other, each [E, numbers]."""
        if isinstance(self.experts, nn.ModuleList):
            for together in zip(*(expert.parameters() for expert in self.experts), strict=True):
                yield torch.stack([one.detach().flatten() for one in together])
        else:
            yield from (parameter.detach().flatten(1) for parameter in self.experts.parameters())


def find_layers(model: nn.Module, where: str) -> list[MoeLayer]:
    """The MoE layers of a model, in order.

    Args:
        where: the model's name in errors.
    Raises:
        CompeteError: the model is dense, or its blocks are of another form.
    """
    found = [
        _layer(name, block, where)
        for name, block in model.named_modules()
        if isinstance(getattr(block, "experts", None), nn.Module) and _router(block) is not None
    ]
    if not found:
        raise CompeteError(
            f"{where}: {type(model).__name__} has no mixture-of-experts layers: there is nothing to audit"
        )
    return found


def _router(block: nn.Module) -> nn.Module | None:
    for name in ROUTERS:
        router = getattr(block, name, None)
        if isinstance(router, nn.Module) and isinstance(getattr(router, "weight", None), Tensor):
            return router
    return None


def _layer(name: str, block: nn.Module, where: str) -> MoeLayer:
    router, experts = _router(block), block.experts
    assert router is not None and isinstance(experts, nn.Module)
    if type(experts) is nn.ModuleList or len(inspect.signature(experts.forward).parameters) < 3:
        raise CompeteError(
            f"{where}: {type(block).__name__} does not hand its tokens to experts(hidden, choices, weights): it is an export of "
            "an older version (convert the checkpoint again), or transformers is older than 5 (update it)"
        )
    number = re.search(r"\.(\d+)\.", name)
    return MoeLayer(int(number[1]) if number else 0, name, router, experts, len(router.weight), _top_k(router, where))  # type: ignore[arg-type]


def _top_k(router: nn.Module, where: str) -> int:
    """K as the router has it, under one of the names that families use."""
    for holder in (router, getattr(router, "config", None)):
        for name in ("top_k", "num_experts_per_tok"):
            if isinstance(found := getattr(holder, name, None), int):
                return found
    raise CompeteError(
        f"{where}: {type(router).__name__} does not say how many experts a token has: this family is not known"
    )


@contextlib.contextmanager
def sending(sends: Mapping[MoeLayer, Send]) -> Iterator[None]:
    """While this is open, each of these layers' `Send` is called with what its router sent, and may send it elsewhere."""
    with contextlib.ExitStack() as hooks:
        for layer, send in sends.items():
            logits: list[Tensor] = []
            hooks.enter_context(_removed(layer.router.register_forward_hook(_keep_logits(layer, logits))))
            hooks.enter_context(
                _removed(layer.experts.register_forward_pre_hook(_replace(layer, send, logits), with_kwargs=True))
            )
        yield


@contextlib.contextmanager
def probing(layers: Sequence[MoeLayer]) -> Iterator[dict[MoeLayer, Tensor]]:
    """While this is open, a zero that needs a gradient is added to each layer's mixture of expert outputs.

    Yields:
        {layer: zero [T, H]}, filled by a forward pass; dL/do of the mixture o is the gradient of these.
    """
    probes: dict[MoeLayer, Tensor] = {}

    def add(layer: MoeLayer) -> Callable[..., Tensor]:
        def hook(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            probes[layer] = torch.zeros_like(output, requires_grad=True)
            return output + probes[layer]

        return hook

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(_removed(layer.experts.register_forward_hook(add(layer))))
        yield probes


def _keep_logits(layer: MoeLayer, logits: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, given: Any, output: Any) -> None:
        several = output if isinstance(output, tuple) else (output,)
        logits[:] = [one for one in several if one.is_floating_point() and one.shape[-1] == layer.count][:1]

    return hook


def _replace(layer: MoeLayer, send: Send, logits: list[Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, choices, weights = (*args, *kwargs.values())[:3]
        if not logits or hidden.dim() != 2:
            raise CompeteError(
                f"{layer.name}: its router gives no logits of {layer.count} experts: this family is not known"
            )
        others = send(Call(hidden.detach(), logits.pop().detach().flatten(0, -2), choices, weights.detach()))
        return None if others is None else ((hidden, *others), {})

    return hook


@contextlib.contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
