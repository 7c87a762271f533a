"""What MkDocs calls while it builds the site: pages generated from the code, and equations as MathML."""

from typing import Any

from generate import commands, errors, mathml, pages, tables
from mkdocs.structure.files import File, Files

GENERATED = {
    "reference/commands.md": commands.commands_page,
    "reference/trainer-flags.md": commands.trainer_flags_page,
    "reference/errors.md": errors.errors_page,
    "reference/metrics.md": tables.metrics_page,
    "reference/exit-codes.md": tables.exit_codes_page,
    "reference/cluster-env.md": tables.cluster_env_page,
    "reference/run-folder.md": tables.run_folder_page,
    "reference/upstream.md": tables.upstream_page,
    "contributing/index.md": pages.contributing_page,
    "contributing/rooms.md": tables.rooms_page,
    "contributing/changelog.md": pages.changelog_page,
    "operations/container.md": pages.container_page,
    "operations/slurm-scripts.md": pages.slurm_page,
    "results/tiny/report.md": pages.study_report_page,
}
"""Pages that no file in docs/ holds, by the function that writes each."""


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages, and the figures of the published study."""
    for name, page in GENERATED.items():
        files.append(File.generated(config, name, content=page()))
    for figure in pages.study_figures():
        files.append(File.generated(config, f"results/tiny/{figure.name}", abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to the published study go to its copy in the site."""
    return markdown.replace("../../benchmarks/studies/", "")


def on_page_content(html: str, **_: Any) -> str:
    """TeX that the Markdown extension has marked becomes MathML: no script, no font, nothing from another host."""
    return mathml.with_mathml(html)
