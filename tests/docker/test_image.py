"""docker/Dockerfile, built for real on a small stand-in for NVIDIA's image."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_compete import __version__
from tests.docker.builder import STAND_INS, Builder, bootstrap, why_not

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600), pytest.mark.skipif(bool(why_not()), reason=why_not())]

UID = 4711


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    folder = tmp_path_factory.mktemp("images")
    builder = Builder.of(folder)
    root = bootstrap(folder)
    builder.commit_base("base", root, STAND_INS["torch"])
    builder.commit_base("old-base", root, "2.5.0+standin")
    yield builder
    builder.run("rm", "--all", check=False)
    builder.run("rmi", "--all", "--force", check=False)
    shutil.rmtree(folder, ignore_errors=True)  # a gigabyte, which pytest would keep three times


@pytest.fixture(scope="module")
def image(builder: Builder) -> str:
    built = builder.build(
        "image", BASE="localhost/base", VERSION=__version__, REVISION="0123abc", EXTRAS="", UID=str(UID), GID=str(UID)
    )
    assert "packages of the base image are as they were" in built.stdout
    return "image"


@pytest.fixture(scope="module")
def container(builder: Builder, image: str) -> str:
    return builder.run("from", image).stdout.strip()


def inside(builder: Builder, container: str, *command: str, check: bool = True) -> tuple[int, str]:
    result = builder.run("run", "--isolation", "chroot", container, "--", *command, check=check)
    return result.returncode, result.stdout


def test_the_command_runs_as_an_ordinary_user(builder: Builder, container: str) -> None:
    assert inside(builder, container, "megatron-compete", "--version")[1] == f"megatron-compete {__version__}\n"
    assert inside(builder, container, "id", "-u")[1] == f"{UID}\n"
    code, _ = inside(builder, container, "touch", "/opt/megatron-compete/README.md", check=False)
    assert code != 0, "the code in the image is not the user's to change"


def test_the_images_own_packages_are_as_they_were(builder: Builder, container: str) -> None:
    says = f"import json, importlib.metadata as m; print(json.dumps([m.version(n) for n in {list(STAND_INS)}]))"
    assert json.loads(inside(builder, container, "python3", "-c", says)[1]) == list(STAND_INS.values())
    where = inside(builder, container, "python3", "-c", "import torch; print(torch.__file__, torch.__version__)")[1]
    assert where == f"/usr/local/lib/python3/dist-packages/torch/__init__.py {STAND_INS['torch']}\n"
    assert "No broken requirements" in inside(builder, container, "python3", "-m", "pip", "check")[1]


def test_the_rest_has_the_known_good_versions(builder: Builder, container: str) -> None:
    pins = (Path(__file__).resolve().parents[2] / "constraints.txt").read_text().splitlines()
    listed = inside(builder, container, "python3", "-m", "pip", "list", "--format", "json")[1]
    versions = {one["name"].lower().replace("_", "-"): one["version"] for one in json.loads(listed)}
    for name in ("megatron-core", "transformers", "numpy", "pyarrow"):
        assert f"{name}=={versions[name]}" in pins


def test_doctor_lives_with_a_torch_that_is_none(builder: Builder, container: str) -> None:
    """The health check's own command; the stand-in has nothing but a version, which is a finding and no traceback."""
    code, answer = inside(builder, container, "megatron-compete", "doctor", "--json", check=False)
    report = json.loads(answer)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert code == 1 and report["works"] is False
    assert findings[f"megatron-compete {__version__}"]["state"] == "ok", "all requirements are met in the image"
    assert findings["PyTorch"]["state"] == "problem" and "AttributeError" in findings["PyTorch"]["value"]
    assert findings["Hugging Face"]["state"] == "ok"


def test_labels_entrypoint_and_health_check(builder: Builder, image: str) -> None:
    config = json.loads(builder.run("inspect", "--type", "image", image).stdout)["Docker"]["config"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["version"] == __version__ and labels["revision"] == "0123abc"
    assert labels["base.name"] == "localhost/base" and labels["licenses"] == "Apache-2.0"
    assert config["User"] == f"{UID}:{UID}" and config["Entrypoint"] == ["megatron-compete"]
    assert config["Healthcheck"]["Test"][-4:] == ["megatron-compete", "doctor", "--require", "training"]


def test_a_base_with_an_old_torch_is_refused_rather_than_fixed(builder: Builder) -> None:
    refused = builder.build("never", check=False, BASE="localhost/old-base", EXTRAS="")
    assert refused.returncode != 0
    assert "torch>=2.8" in refused.stdout + refused.stderr and "torch==2.5.0" in refused.stdout + refused.stderr
    assert builder.run("images", "--quiet", "never", check=False).stdout.strip() == ""


def test_a_label_cannot_name_another_version(builder: Builder, image: str) -> None:
    wrong = builder.build("never", check=False, BASE=f"localhost/{image}", VERSION="99.9", EXTRAS="")
    said = wrong.stdout + wrong.stderr
    assert wrong.returncode != 0 and f"error: VERSION 99.9 is not that of megatron-compete {__version__}" in said
