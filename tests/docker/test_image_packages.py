"""What keeps pip from touching the image's own packages."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def image_packages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("image_packages", ROOT / "docker" / "image_packages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    return tmp_path


def test_the_images_versions_win_over_ours(image_packages: ModuleType, folder: Path) -> None:
    image = {"torch": "2.12.0a0+0291f960b6.nv26.04", "typing-extensions": "4.14.0"}
    image_pins = [
        "# NVIDIA's",
        "",
        "protobuf==4.24.4  # tensorrt",
        "--no-binary apex",
        "dllogger @ file:///opt/dllogger",
    ]
    image_packages.plan(folder, ["engines"], image, image_pins)
    pins = (folder / "pins.txt").read_text().splitlines()
    assert "torch==2.12.0a0+0291f960b6.nv26.04" in pins and "typing-extensions==4.14.0" in pins
    assert "protobuf==4.24.4" in pins and not [pin for pin in pins if "dllogger" in pin or pin.startswith("-")]
    names = [image_packages.canonical(pin.split("==")[0]) for pin in pins]
    assert len(names) == len(set(names)), "two pins of one package"
    assert "megatron-core==0.19.2" in pins, "what the image lacks is ours"
    assert json.loads((folder / "image.json").read_text()) == image


def test_requirements_are_the_projects_with_the_extras(image_packages: ModuleType, folder: Path) -> None:
    image_packages.plan(folder, ["engines"], {}, [])
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert "torch>=2.8" in lines and "megatron-core>=0.19,<0.20" in lines and "kitoken>=0.11" in lines
    image_packages.plan(folder, [], {}, [])
    assert "kitoken>=0.11" not in (folder / "requirements.txt").read_text()


def test_an_unknown_extra_is_named(image_packages: ModuleType, folder: Path) -> None:
    with pytest.raises(SystemExit, match="EXTRAS gpu: choose from mpi, energon, engines"):
        image_packages.plan(folder, ["gpu"], {}, [])


def test_a_touched_package_is_named(image_packages: ModuleType) -> None:
    before = {"torch": "2.12", "apex": "0.1", "numpy": "1.26.4"}
    after = {"torch": "2.13", "numpy": "1.26.4", "rich": "15"}
    assert image_packages.changed(before, after) == ["torch 2.12 became 2.13", "apex 0.1 became nothing"]
    assert image_packages.changed(before, before | {"rich": "15"}) == []


def test_what_is_installed_here_is_seen(image_packages: ModuleType) -> None:
    found = image_packages.installed()
    assert found["megatron-core"].startswith("0.19") and "pip" not in found and "megatron-compete" not in found
