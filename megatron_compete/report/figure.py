"""One figure of a competing run: loss, agreement and the layers that competed, over the steps."""

from pathlib import Path

from megatron_compete.report.scalars import Scalars

LOSS = "lm loss"
VALIDATION = "lm loss validation"
ACTIVE = "competition/active-layers"
AGREEMENT = "competition/agreement"
DISTILLATION = "competition/distillation-loss"


def draw_run(scalars: Scalars, path: Path, title: str = "") -> None:
    """Write the figure of a run to `path` (the suffix names the format)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (loss, agreement, active) = pyplot.subplots(
        3, 1, sharex=True, figsize=(8, 7), height_ratios=(3, 2, 1), layout="constrained"
    )
    loss.plot(*_series(scalars, LOSS), linewidth=1, label="training")
    if VALIDATION in scalars:
        loss.plot(*_series(scalars, VALIDATION), "o-", label="held-out")
    loss.set(ylabel="loss (nats/token)", title=title)
    loss.legend(frameon=False)
    agreement.plot(*_series(scalars, AGREEMENT), ".", markersize=4, color="tab:green")
    agreement.set(ylabel="router agrees\nwith competition", ylim=(0, 1))
    active.bar(*_series(scalars, ACTIVE), width=1.0, color="tab:orange")
    active.set(ylabel="competing\nlayers", xlabel="step")
    active.yaxis.get_major_locator().set_params(integer=True)
    for axes in (loss, agreement, active):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _series(scalars: Scalars, name: str) -> tuple[list[int], list[float]]:
    points = sorted(scalars.get(name, {}).items())
    return [step for step, _ in points], [value for _, value in points]
