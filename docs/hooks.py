"""What MkDocs calls while it builds the site: pages generated from the code, and equations as MathML."""

from typing import Any

from mkdocs.structure.files import File, Files

from generate import mathml, pages
from generate.index import GENERATED


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages, and the figures of the published studies."""
    for name, page in GENERATED.items():
        files.append(File.generated(config, name, content=page()))
    for place, figure in pages.study_figures().items():
        files.append(File.generated(config, place, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to the published studies go to their copies in the site."""
    return markdown.replace("../../benchmarks/studies/", "")


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """TeX that the Markdown extension has marked becomes MathML: no script, no font, nothing from another host.

    Beside the equations the functions' source is shown unfolded.
    """
    if page.file.src_uri == "concepts/equations.md":
        html = html.replace('<details class="mkdocstrings-source">', '<details class="mkdocstrings-source" open>')
    return mathml.with_mathml(html)
