"""Loads of the experts, and the losses that keep them even."""

from typing import TYPE_CHECKING

from megatron_compete.report.layers import dead_since
from megatron_compete.report.page import Section, Table
from megatron_compete.report.sections.parts import heat_map_of, layer_maps, model_and_layers, of_run
from megatron_compete.report.sections.sheet import DEAD, LOADS, Sheet

if TYPE_CHECKING:
    from bokeh.models import LayoutDOM


def load_section(sheet: Sheet) -> Section | None:
    """Loads of experts, and who is dead since when."""
    figures: list[LayoutDOM] = []
    for tag, meaning in LOADS:
        figures += model_and_layers(sheet, tag, meaning)
    dead = sheet.curves(DEAD)
    if dead:
        figures.append(sheet.chart(dead, "dead experts", title="Experts without a token, over all layers"))
    tables = []
    for run in sheet.runs:
        tags = sheet.maps[run.name].get(DEAD, {})
        curves = {layer: curve for layer, tag in tags.items() if (curve := run.curve(tag)) is not None}
        if not curves:
            continue
        sheet.shown.update(tags.values())
        figures.append(heat_map_of(sheet, run, curves, "dead experts", "Dead experts", of="greatest"))
        rows = [[one.layer if run.tower_layers is None else run.layer_name(one.layer), one.now, "-" if one.since is None else f"{one.since:,}", f"{one.most} at step {one.at:,}"] for one in dead_since(curves)]  # fmt: skip
        if rows:
            tables.append(Table(["layer", "dead now", "without a break since step", "most"], rows, f"Layers with dead experts{of_run(sheet, run)}"))  # fmt: skip
    if not figures:
        if any(run.events is not None for run in sheet.runs):
            sheet.missing.append(
                "Loads of the experts: this trainer did not log them (--router compete or a baseline does)"
            )
        return None
    if not any(name.startswith("moe/load") for maps in sheet.maps.values() for name in maps):
        sheet.missing.append("Loads by layer: train with --moe-per-layer-logging")
    text = (
        "Loads are of whole steps over all ranks; 1 is balance. Counts by expert are not logged: which expert is dead, an "
        "audit of a checkpoint says."
    )
    return Section("Load of the experts", text, tables, figures)


def other_losses_section(sheet: Sheet) -> Section | None:
    """The router's own losses, as Megatron logs them."""
    layered = {tag for maps in sheet.maps.values() for layers in maps.values() for tag in layers.values()}
    tags = dict.fromkeys(
        tag for run in sheet.runs for tag in run.tags() if tag.endswith("_loss") and tag not in layered
    )
    figures: list[LayoutDOM] = []
    for tag in tags:
        figures += model_and_layers(sheet, tag, tag.replace("_", " "))
    for run in sheet.runs:
        for name, layers in sheet.maps[run.name].items():
            if name.endswith("_loss") and not set(layers.values()) & sheet.shown:
                figures += layer_maps(sheet, run, name, name.removeprefix("moe/").replace("_", " "))
    return Section("The router's losses", figures=figures, open=False) if figures else None
