"""An audit's figures as PNG, for papers and READMEs: readable in grey and for any colour vision."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_compete.audit.measures import METRICS, by_layer, changes, targets
from megatron_compete.audit.results import Audit
from megatron_compete.common.errors import CompeteError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
"""Okabe and Ito's colours, https://jfly.uni-koeln.de/color/."""
DOTS = 150
"""Dots an inch."""
MANY = 64
"""Layers from which on marks are small."""


def write_figures(audit: Audit, folder: Path) -> list[Path]:
    """Write load.png, and agreement.png, regret.png, similarity.png and against.png of the parts that were measured.

    Raises:
        CompeteError: they cannot be written, or matplotlib is missing.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise CompeteError(f"figures need matplotlib ({error}): pip install 'megatron-compete[report]'") from None
    drawn: dict[str, Callable[[Audit], Figure | None]] = {
        "load.png": _draw_load,
        "agreement.png": _draw_agreement,
        "regret.png": _draw_regret,
        "similarity.png": _draw_similarity,
        "against.png": _draw_against,
    }
    written = []
    for name, draw in drawn.items():
        figure = draw(audit)
        if figure is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / name, dpi=DOTS)
        except OSError as error:
            raise CompeteError(f"{folder / name} cannot be written: {error.strerror}") from None
        finally:
            pyplot.close(figure)
        written.append(folder / name)
    return written


def _draw_load(audit: Audit) -> "Figure | None":
    """Every layer's experts from the most used to the least."""
    from matplotlib import pyplot

    if not audit.layers:
        return None
    loads_LE = np.full((len(audit.layers), max(layer.experts for layer in audit.layers)), np.nan)
    for row, layer in enumerate(audit.layers):
        loads_LE[row, : layer.experts] = -np.sort(-np.array(layer.use.load, dtype=np.float64)) * layer.experts
    finite = loads_LE[np.isfinite(loads_LE)]
    high = max(2.0, float(np.quantile(finite, 0.995))) if finite.size else 2.0
    figure, axes = pyplot.subplots(figsize=(7, min(8, 2.2 + 0.12 * len(audit.layers))), layout="constrained")
    axes.set_facecolor("#D9D9D9")
    image = axes.imshow(loads_LE, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=high, interpolation="nearest")  # fmt: skip
    figure.colorbar(image, label="load in even shares", extend="max")
    axes.set(xlabel="experts of the layer, most used first", ylabel="layer of the model", title="Load of the experts")
    _name_layers(axes, [layer.layer for layer in audit.layers])
    _span(axes, range(loads_LE.shape[1]))
    return figure


def _draw_agreement(audit: Audit) -> "Figure | None":
    measured = [layer for layer in audit.layers if layer.competition]
    if not measured:
        return None
    chance = ([layer.layer for layer in measured], [layer.top_k / layer.experts for layer in measured])
    shown = {
        "utility": (*by_layer(audit, "agreement_utility"), BLUE, "o-"),
        "response": (*by_layer(audit, "agreement_response"), ORANGE, "s--"),
        "chance, K / E": (*chance, GREY, "_:"),
    }
    return _lines(shown, "agreement of the router", (0, 1))


def _draw_similarity(audit: Audit) -> "Figure | None":
    if not any(layer.geometry for layer in audit.layers):
        return None
    looks = ((BLUE, "o-"), (ORANGE, "s--"), (GREEN, "^:"))
    keys = ("output_similarity", "weight_similarity", "router_similarity")
    shown = {METRICS[key].name.split()[0]: (*by_layer(audit, key), *look) for key, look in zip(keys, looks)}
    return _lines(shown, "cosine of two experts, mean", None)


def _draw_against(audit: Audit) -> "Figure | None":
    if not any(layer.against for layer in audit.layers):
        return None
    looks = ((BLUE, "o-"), (ORANGE, "s--"))
    shown = {
        METRICS[key].name: (*by_layer(audit, key), *look) for key, look in zip(("same_choice", "changed_tokens"), looks)
    }
    return _lines(shown, "share", (0, 1))


def _lines(shown: dict[str, tuple[list[int], list[float], str, str]], label: str, limits: tuple[float, float] | None) -> "Figure":  # fmt: skip
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for name, (layers, values, color, look) in shown.items():
        axes.plot(
            layers, values, look, color=color, label=name, markersize=2 if len(layers) > MANY else 4, linewidth=1.2
        )
    if limits:
        axes.set_ylim(*limits)
    axes.set(xlabel="layer of the model", ylabel=label)
    _span(axes, sorted({layer for layers, *_ in shown.values() for layer in layers}))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(shown), frameon=False)
    return figure


def _draw_regret(audit: Audit) -> "Figure | None":
    """A panel for each place that tokens were sent to, as their changes differ by orders of magnitude."""
    from matplotlib import pyplot

    names = targets(audit)
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(2.6 * columns + 0.6, 2.3 * rows + 0.3), sharex=True, squeeze=False, layout="constrained")  # fmt: skip
    for axes, name in zip(grid.flat, names):
        found = changes(audit, name)
        layers = [layer for layer, _ in found]
        values = np.array([(change.mean, change.low, change.high) for _, change in found], dtype=np.float64)
        values[~np.isfinite(values).all(axis=1)] = np.nan
        axes.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
        many = len(layers) > MANY
        axes.vlines(layers, values[:, 1], values[:, 2], color=BLUE, linewidth=1, alpha=0.35 if many else 1)
        axes.plot(layers, values[:, 0], "o", color=BLUE, markersize=1.8 if many else 3.5)
        axes.set_title(name, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        _span(axes, layers)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("layer of the model", fontsize=10)
    figure.supylabel("change of the loss (nats a token)", fontsize=10)
    return figure


def _name_layers(axes: "Axes", layers: list[int]) -> None:
    """Rows are named by the model's layers, about twelve of them."""
    chosen = range(0, len(layers), max(1, -(-len(layers) // 12)))
    axes.set_yticks(list(chosen), [str(layers[place]) for place in chosen])


def _span(axes: "Axes", places: Sequence[int]) -> None:
    """Ticks at layers or experts only, also of a single one."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
