"""The pages of audits: one audit, or several side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from megatron_compete.audit.comparison import compare
from megatron_compete.audit.results import Audit
from megatron_compete.audit.sections import competition, experts, reference, use
from megatron_compete.report.page import Page, Section, write_page


def write_audit_page(audit: Audit, matrices: Mapping[str, Tensor], path: Path) -> None:
    """Write an audit as a page that works offline; what was not measured is said in one line.

    Args:
        matrices: as `write_audit` takes them; layers without any have no maps of pairs.
    Raises:
        CompeteError: it cannot be written, or the packages of the extra `report` are missing.
    """
    write_page(Page(f"Audit of {audit.checkpoint}", reference.summary(audit), sections(audit, matrices)), path)


def write_comparison_page(audits: Sequence[tuple[str, Audit]], path: Path) -> None:
    """Write audits side by side: {name, audit}, the first of which the others are compared to.

    Numbers of layers and experts may differ; where texts do, the page says that losses cannot be compared.

    Raises:
        CompeteError: it cannot be written, or the packages of the extra `report` are missing.
    """
    write_page(compare(audits), path)


def sections(audit: Audit, matrices: Mapping[str, Tensor]) -> list[Section]:
    """All of an audit's page, in order."""
    return [
        reference.stands_out(audit),
        use.load(audit),
        use.use(audit),
        use.domains(audit),
        competition.competition(audit),
        competition.regret(audit),
        experts.experts(audit, matrices),
        experts.router(audit),
        experts.against(audit),
        reference.numbers(audit),
        reference.cost(audit),
        reference.definitions([audit]),
    ]
