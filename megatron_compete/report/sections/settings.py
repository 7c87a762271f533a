"""The recipes, and in what they differ; and the scalars that no other section shows."""

from megatron_compete.report.page import Section, Table
from megatron_compete.report.sections.parts import shortened, shown_value
from megatron_compete.report.sections.sheet import Sheet


def settings_section(sheet: Sheet) -> Section | None:
    """The recipes, and in what they differ."""
    complete = all(run.arguments for run in sheet.runs)
    chosen = {run.name: {**run.settings, **(run.arguments if complete else {})} for run in sheet.runs}
    names = sorted({name for settings in chosen.values() for name in settings})
    if not names:
        sheet.missing.append("Settings: neither a recipe nor arguments in TensorBoard")
        return None
    if not sheet.single:
        differing = [name for name in names if len({settings.get(name) for settings in chosen.values()}) > 1]
        rows = [[name, *(shortened(settings.get(name, "-")) for settings in chosen.values())] for name in differing]
        if not rows:
            return Section("Settings", "No setting differs.")
        return Section("Settings", tables=[Table(["setting", *chosen], rows, "What differs")])
    (run,) = sheet.runs
    rows = [[name, shortened(value)] for name, value in sorted(run.settings.items())]
    return Section("Settings", tables=[Table(["setting", "value"], rows)], open=len(rows) <= 80)


def rest_section(sheet: Sheet) -> Section | None:
    """The scalars that no chart above shows, by their last values."""
    layered = {tag for maps in sheet.maps.values() for layers in maps.values() for tag in layers.values()}
    rows = []
    for run in sheet.runs:
        for tag in run.tags():
            curve = run.curve(tag)
            if curve is not None and tag not in sheet.shown | layered and not tag.endswith(" vs samples"):
                rows.append(
                    [run.name, tag, f"{len(curve.steps):,}", f"{curve.steps[-1]:,}", shown_value(curve.values[-1])]
                )
    table = Table(["run", "scalar", "points", "last step", "last value"], rows[:1000])
    return Section("Other scalars", tables=[table], open=False) if rows else None
