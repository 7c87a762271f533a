"""The file that describes a chain of jobs (`chain.py`): its sections, their keys, and the settings of each part."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from megatron_compete.cluster.sbatch import KINDS
from megatron_compete.cluster.settings import Settings
from megatron_compete.errors import CompeteError

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
    try:
        text = path.read_text()
        content, written = yaml.safe_load(text), yaml.load(text, yaml.BaseLoader)
    except OSError as error:
        raise CompeteError(f"--chain {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise CompeteError(f"--chain {path} is not YAML: {error}") from None
    if not isinstance(content, dict) or not content:
        raise CompeteError(f"--chain {path} needs one section or more of {', '.join(KINDS)}")
    unknown = [kind for kind in content if kind not in KINDS]
    if unknown or list(content) != [kind for kind in KINDS if kind in content]:
        raise CompeteError(
            f"--chain {path}: sections {', '.join(map(str, content))} are not {', '.join(KINDS)} in this order"
        )
    for kind, section in content.items():
        if isinstance(section, dict) and "time" in section:
            section["time"] = written[kind]["time"]  # YAML reads an unquoted 1:30:00 as a number to base 60
    return {kind: _section(path, kind, _filled(section or {}, str(folder))) for kind, section in content.items()}


def _section(path: Path, kind: str, section: Any) -> Section:
    known = (*KEYS, *OWN_KEYS[kind])
    if not isinstance(section, dict):
        raise CompeteError(f"--chain {path}: {kind} is no mapping of {', '.join(known)}")
    for name, value in section.items():
        if name not in known:
            raise CompeteError(f"--chain {path}: {kind}: {name} is none of {', '.join(known)}")
        if name in ("cluster", "arguments", "tokenizer") and not isinstance(value, dict):
            raise CompeteError(f"--chain {path}: {kind}: {name} is no mapping of names to values")
    return section


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
    more = {str(name): str(value) for name, value in section.get("cluster", {}).items()}
    return Settings.of(settings, defaults, named, more)


def nodes_of(kind: str, section: Section) -> int:
    """Nodes of a part; only a training part has to say."""
    nodes = section.get("nodes", None if kind == "pretrain" else 1)
    if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1:
        raise CompeteError(f"{kind}: nodes: {'is missing' if nodes is None else nodes}: give a whole number from 1")
    return nodes
