"""Install this package into an image that already has torch, and leave everything that the image brings as it is.

    python3 image_packages.py plan FOLDER EXTRA,EXTRA   before installing; reads FOLDER/pyproject.toml and constraints.txt
    python3 image_packages.py check FOLDER             after installing; exit code 1 where a package of the image changed

`plan` writes FOLDER/requirements.txt (what the package needs), FOLDER/pins.txt (constraints for pip: the image's own
packages and pins first, then this repository's known-good versions of what the image lacks) and FOLDER/image.json (what the
image had). Standard library only: it runs before anything is installed.
"""

import json
import os
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

MAY_CHANGE = frozenset({"pip", "setuptools", "wheel", "megatron-compete"})
"""Tools, and the package itself when an image is built on an earlier one."""


def canonical(name: str) -> str:
    """A distribution's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Canonical name -> version of everything installed here."""
    found = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name and distribution.version:
            found.setdefault(canonical(name), distribution.version)  # the first on the path is the one imported
    return {name: version for name, version in found.items() if name not in MAY_CHANGE}


def pins_of(lines: list[str]) -> dict[str, str]:
    """Canonical name -> line of a constraints file, without comments and what names a file or an option."""
    pins = {}
    for line in lines:
        pin = line.split("#")[0].strip()
        found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", pin)
        if found and "@" not in pin:
            pins[canonical(found.group())] = pin
    return pins


def requirements_of(pyproject: str, extras: list[str]) -> list[str]:
    """What the package needs, with these extras."""
    project = tomllib.loads(pyproject)["project"]
    optional = project["optional-dependencies"]
    unknown = [extra for extra in extras if extra not in optional]
    if unknown:
        raise SystemExit(f"error: EXTRAS {','.join(unknown)}: choose from {', '.join(optional)}")
    return project["dependencies"] + [line for extra in extras for line in optional[extra]]


def plan(folder: Path, extras: list[str], image: dict[str, str], image_pins: list[str]) -> None:
    """Write what pip is to install, and what it may not touch."""
    own = pins_of((folder / "constraints.txt").read_text().splitlines())
    theirs = pins_of(image_pins) | {name: f"{name}=={version}" for name, version in image.items()}
    requirements = requirements_of((folder / "pyproject.toml").read_text(), extras)
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    (folder / "pins.txt").write_text("\n".join((own | theirs).values()) + "\n")
    (folder / "image.json").write_text(json.dumps(image))


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """One line for each package of the image that has another version now, or is gone."""
    return [
        f"{name} {version} became {after.get(name, 'nothing')}"
        for name, version in before.items()
        if after.get(name) != version
    ]


def main() -> None:
    """`plan` or `check`."""
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "plan":
        image_pins = Path(os.environ.get("PIP_CONSTRAINT") or "/dev/null")
        extras = [extra for extra in sys.argv[3].split(",") if extra]
        plan(folder, extras, installed(), image_pins.read_text().splitlines())
        return
    before = json.loads((folder / "image.json").read_text())
    if differences := changed(before, installed()):
        raise SystemExit("error: packages of the base image were touched: " + "; ".join(differences))
    print(f"all {len(before)} packages of the base image are as they were")


if __name__ == "__main__":
    main()
