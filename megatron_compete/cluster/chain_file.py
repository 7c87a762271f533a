"""The file that describes a chain of jobs (`chain.py`): its sections, their keys, and the settings of each part."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_compete.cluster.sbatch import KINDS
from megatron_compete.cluster.settings import Settings
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.local_paths import check_local
from megatron_compete.common.yaml_file import YamlFile, kind_of
from megatron_compete.launch.recipe import read_arguments

RESOURCES = {
    "time": "COMPETE_TIME",
    "tasks-per-node": "COMPETE_TASKS_PER_NODE",
    "gpus-per-node": "COMPETE_GPUS_PER_NODE",
    "cpus-per-task": "COMPETE_CPUS_PER_TASK",
}
"""Keys of a section that stand for settings; any other setting goes under `cluster`."""

KEYS = ("nodes", *RESOURCES, "cluster", "arguments")
OWN_KEYS = {"preprocess": ("tokenizer",), "pretrain": ("recipe",), "convert": (), "evaluate": ()}


Section = dict[str, Any]


def read_chain(path: Path, folder: Path) -> dict[str, Section]:
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
    return {kind: _filled(_section(file, kind, section), str(folder)) for kind, section in content.items()}


def _section(file: YamlFile, kind: str, content: Any) -> Section:
    known = (*KEYS, *OWN_KEYS[kind])
    section = {name: value for name, value in file.section(content, kind).items() if value is not None}
    for name, value in section.items():
        if name not in known:
            file.fail(f"{kind}: {name} is none of {', '.join(known)}", kind, name)
        if name in ("arguments", "tokenizer"):
            section[name] = read_arguments(file, value, kind, name)
            for argument, given in section[name].items():
                check_local(f"{kind}: {name}: {argument}:", given)
        elif name == "cluster":
            section[name] = _settings(file, value, kind)
        elif not isinstance(value, str | int) or isinstance(value, bool):
            file.fail(f"{kind}: {name} is {kind_of(value)}, not text or a whole number", kind, name)
    return section


def _settings(file: YamlFile, content: Any, kind: str) -> dict[str, str]:
    """Settings over those of the cluster; an empty value takes one back."""
    found = file.section(content, kind, "cluster")
    for name, value in found.items():
        if isinstance(value, bool | list | dict):
            file.fail(f"{kind}: cluster: {name} is {kind_of(value)}, not text or a number", kind, "cluster", name)
    return {name: "" if value is None else str(value) for name, value in found.items()}


def _filled(value: Any, chain: str) -> Any:
    if isinstance(value, str):
        return value.replace("{chain}", chain)
    if isinstance(value, list):
        return [_filled(item, chain) for item in value]
    if isinstance(value, dict):
        return {name: _filled(item, chain) for name, item in value.items()}
    return value


def section_settings(kind: str, section: Section, settings: Mapping[str, str]) -> Settings:
    """The cluster's settings for one part: the tools take one task a node and no GPU unless their section says more."""
    defaults: dict[str, str] = {}
    if kind != "pretrain":
        gpus = "1" if kind == "evaluate" and settings.get("COMPETE_GPUS_PER_NODE", "0") != "0" else "0"
        defaults = {"COMPETE_TASKS_PER_NODE": "1", "COMPETE_GPUS_PER_NODE": gpus}
    named = {RESOURCES[name]: str(section[name]) for name in RESOURCES if name in section}
    return Settings.of(settings, defaults, named, section.get("cluster", {}))


def nodes_of(kind: str, section: Section) -> int:
    """Nodes of a part; only a training part has to say."""
    nodes = section.get("nodes", None if kind == "pretrain" else 1)
    if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1:
        raise CompeteError(f"{kind}: nodes: {'is missing' if nodes is None else nodes}: give a whole number from 1")
    return nodes
