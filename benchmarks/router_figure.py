"""The figure of `benchmarks/routers.py`: for each router its experts' load, experts per token, and some tokens' weights."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case

TOKENS_SHOWN = 40
COLUMNS = 2


def draw_routers(results: dict[str, dict[str, Any]], case: Case, path: Path) -> None:
    """Write the figure to `path` (the suffix names the format)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(results) // COLUMNS)
    figure = pyplot.figure(figsize=(8 * COLUMNS, 2.15 * rows), layout="constrained")
    panels = figure.subfigures(rows, COLUMNS, squeeze=False)
    busiest = max(float(_load(result).max()) for result in results.values())
    for panel, result in zip(panels.T.flatten(), results.values()):
        shared = " + 1 shared expert" if result["shares_an_expert"] else ""
        panel.suptitle(
            f"{result['label']}{shared}   |   {result['router_parameters']:,} parameters, {result['time_ratio']:.2f}x time",
            fontsize=10, x=0.02, ha="left",
        )  # fmt: skip
        load, counts, weights = panel.subplots(1, 3, width_ratios=(1, 1, 1.5))
        _draw_load(load, result, busiest)
        _draw_counts(counts, result, case)
        _draw_weights(weights, result)
    if rows * COLUMNS > len(results):
        panels.T.flatten()[-1].text(0.02, 0.5, _legend(results, case), va="center", fontsize=10, linespacing=1.5)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _legend(results: dict[str, dict[str, Any]], case: Case) -> str:
    tokens = len(next(iter(results.values()))["weights"])
    return (
        f"All layers see the same {tokens} held-out tokens: E = {case.experts} experts, K = {case.topk} per token, of size "
        f"{case.hidden} x {case.ffn}.\n"
        "Left: tokens per expert relative to the mean. Middle: how many routed experts a token has; dotted: the mean.\n"
        f"Right: weights of experts (columns) in the output of {TOKENS_SHOWN} tokens (rows); white: not chosen.\n"
        "Time: forward and backward pass of the layer against top-K; competition at a competing step."
    )


def _load(result: dict[str, Any]) -> torch.Tensor:
    """Tokens per expert relative to the mean, busiest first."""
    load_E = (result["weights"] > 0).sum(dim=0).float()
    return (load_E / load_E.mean()).sort(descending=True).values


def _draw_load(axes: Any, result: dict[str, Any], busiest: float) -> None:
    load_E = _load(result).tolist()
    axes.bar(range(len(load_E)), load_E, width=1.0, color="tab:blue")
    axes.axhline(1.0, color="black", linewidth=0.6)
    axes.set(ylim=(0, busiest * 1.05), xlabel="experts by load", ylabel="load / mean")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_counts(axes: Any, result: dict[str, Any], case: Case) -> None:
    count_T = (result["weights"] > 0).sum(dim=1)
    shares = torch.bincount(count_T, minlength=2 * case.topk + 1).float() / len(count_T)
    axes.bar(range(len(shares)), shares.tolist(), width=0.9, color="tab:orange")
    axes.axvline(float(count_T.float().mean()), color="black", linewidth=0.8, linestyle=":")
    axes.set(ylim=(0, 1), xlabel="routed experts per token", ylabel="share of tokens")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_weights(axes: Any, result: dict[str, Any]) -> None:
    """Weights of some tokens, those of a kind beside each other; experts as in the panel of loads."""
    by_load = (result["weights"] > 0).sum(dim=0).argsort(descending=True)
    by_kind = result["kinds"][: 4 * TOKENS_SHOWN].argsort(stable=True)[::4]
    weights = result["weights"][by_kind][:, by_load]
    shown = weights.masked_fill(weights == 0, float("nan"))  # drawn white
    image = axes.imshow(shown, aspect="auto", cmap="viridis_r", interpolation="nearest", vmin=0.0)
    axes.set(xlabel="experts by load", ylabel="tokens by kind", yticks=[])
    axes.figure.colorbar(image, ax=axes, label="weight")
