"""The file that describes a chain of jobs (`chain.py`): its sections, their keys, and the settings of each job."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from megatron_compete.cluster.sbatch import KINDS
from megatron_compete.cluster.settings import Settings
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.local_paths import check_local
from megatron_compete.common.sections import Count, Section, Word, read_section
from megatron_compete.common.yaml_file import YamlFile
from megatron_compete.launch.recipe import read_arguments


class PartSection(Section):
    """What a chain's file says of one job."""

    nodes: Count | None = None
    time: Word | None = None
    tasks_per_node: Word | None = None
    gpus_per_node: Word | None = None
    cpus_per_task: Word | None = None
    cluster: dict[str, Word] = Field(default_factory=dict)
    """Settings over those of the cluster; an empty value takes one back."""
    arguments: dict[str, Any] = Field(default_factory=dict)

    def resources(self) -> dict[str, str]:
        """The settings that have a key of their own."""
        given = {
            "COMPETE_TIME": self.time,
            "COMPETE_TASKS_PER_NODE": self.tasks_per_node,
            "COMPETE_GPUS_PER_NODE": self.gpus_per_node,
            "COMPETE_CPUS_PER_TASK": self.cpus_per_task,
        }
        return {name: value for name, value in given.items() if value is not None}


class PreprocessSection(PartSection):
    """With a tokenizer to train first."""

    tokenizer: dict[str, Any] | None = None


class PretrainSection(PartSection):
    """With the recipe to train by."""

    recipe: Word | None = None


MODELS: dict[str, type[PartSection]] = {"preprocess": PreprocessSection, "pretrain": PretrainSection}


def read_chain(path: Path, folder: Path) -> dict[str, PartSection]:
    """Sections of a chain file, `{chain}` filled in.

    Raises:
        CompeteError: names what is missing, unknown or out of order.
    """
    file = YamlFile(path, "--chain")
    content = file.section(file.content)
    for kind in content:
        if kind not in KINDS:
            file.fail(f"{kind} is none of {', '.join(KINDS)}", kind)
    if not content:
        file.fail(f"needs one section or more of {', '.join(KINDS)}")
    if list(content) != [kind for kind in KINDS if kind in content]:
        file.fail(f"sections {', '.join(content)} are not {', '.join(KINDS)} in this order")
    return {kind: _section(file, kind, _filled(section, str(folder))) for kind, section in content.items()}


def _section(file: YamlFile, kind: str, content: Any) -> PartSection:
    section = read_section(file, MODELS.get(kind, PartSection), content, kind)
    for name in ("arguments", "tokenizer"):
        for argument, given in read_arguments(file, getattr(section, name, None), kind, name).items():
            check_local(f"{kind}: {name}: {argument}:", given)
    return section


def _filled(value: Any, chain: str) -> Any:
    if isinstance(value, str):
        return value.replace("{chain}", chain)
    if isinstance(value, list):
        return [_filled(item, chain) for item in value]
    if isinstance(value, dict):
        return {name: _filled(item, chain) for name, item in value.items()}
    return value


def section_settings(kind: str, section: PartSection, settings: Mapping[str, str]) -> Settings:
    """The cluster's settings for one job: the tools take one task a node and no GPU unless their section says more."""
    defaults: dict[str, str] = {}
    if kind != "pretrain":
        gpus = "1" if kind == "evaluate" and settings.get("COMPETE_GPUS_PER_NODE", "0") != "0" else "0"
        defaults = {"COMPETE_TASKS_PER_NODE": "1", "COMPETE_GPUS_PER_NODE": gpus}
    return Settings.of(settings, defaults, section.resources(), section.cluster)


def nodes_of(kind: str, section: PartSection) -> int:
    """Nodes of a job; only a training job has to say."""
    if section.nodes is None and kind == "pretrain":
        raise CompeteError("pretrain: nodes: is missing: give a whole number from 1")
    return section.nodes or 1
