"""The page of features: `plan/feature_table.py` as a table for each section."""

from generate import table
from megatron_compete.plan.feature_table import MEANINGS, SECTIONS, Feature


def features_page() -> str:
    """What recipes ask for, and what is known of each with competition."""
    meanings = table(["", "meaning"], [[status, meaning] for status, meaning in MEANINGS.items()])
    sections = "\n".join(
        f"## {title}\n\n{table(['feature', 'example', 'with competition', 'shown by, or why not'], [row(one) for one in rows])}"
        for title, rows in SECTIONS.items()
    )
    return f"""# Features of recipes

What recipes for MoE models ask of Megatron, and what is known of each together with competition. `megatron-compete plan
--recipe FILE --features` shows the rows of one recipe. The table is `plan/feature_table.py`; a test checks every row: that the
named test exists, and that the trainer's check takes the example, or refuses it.

{meanings}
{sections}"""


def row(feature: Feature) -> list[str]:
    """A feature as cells."""
    shown = feature.evidence if feature.status == "refused" else f"`{feature.evidence}`"
    if feature.status == "untested":
        shown = f"priced alone: {shown}"
    if feature.on_gpu:
        shown += f"; ready for a GPU: `{feature.on_gpu}`"
    return [feature.name, f"`{feature.flags}`", feature.status, shown]
