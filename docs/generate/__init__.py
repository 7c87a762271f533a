"""Pages of the site that are made from the code, so that they cannot say something else than it does."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "megatron_compete"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; bars and line breaks in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
        )
        + "\n"
    )


def first_sentence(text: str | None) -> str:
    """Of a docstring, as one line."""
    return " ".join((text or "").split("\n\n")[0].split())
