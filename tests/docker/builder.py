"""buildah with a storage of its own, and a small stand-in for NVIDIA's image: Debian with a torch that must survive."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SUITE = "trixie"
PACKAGES = "python3-minimal,python3-pip,ca-certificates"

STAND_INS = {"torch": "2.12.0a0+standin", "transformer_engine": "2.14.0+standin", "apex": "0.1+standin"}
"""Distribution -> version that an installer from PyPI would replace if it were allowed to."""

HOST_CERTIFICATES = "/etc/ssl/certs"
"""Mounted into builds: the host may trust a proxy that Debian does not know."""


def why_not() -> str:
    """What is missing for building images here; empty if nothing is."""
    if os.geteuid() != 0:
        return "building an image needs root (chroot isolation)"
    absent = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    return f"apt-get install {' '.join(absent)} for this" if absent else ""


@dataclass(frozen=True)
class Builder:
    """buildah on a storage folder that can be thrown away as a whole."""

    folder: Path
    driver: str

    @classmethod
    def of(cls, folder: Path) -> "Builder":
        """With the overlay driver where the file system has it, else by copies."""
        overlay = cls(folder, "overlay")
        return overlay if overlay.run("info", check=False).returncode == 0 else cls(folder, "vfs")

    def run(self, *arguments: str, check: bool = True, seconds: float = 1200.0) -> subprocess.CompletedProcess[str]:
        """One buildah command, from the repository's root."""
        storage = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        result = subprocess.run(
            ["buildah", *storage, "--storage-driver", self.driver, *arguments], capture_output=True, text=True,
            cwd=ROOT, stdin=subprocess.DEVNULL, timeout=seconds, check=False,
        )  # fmt: skip
        assert not check or result.returncode == 0, f"buildah {' '.join(arguments)}:\n{result.stdout}\n{result.stderr}"
        return result

    def commit_base(self, name: str, root: Path, torch: str) -> None:
        """An image of this root file system, with the stand-ins."""
        container = self.run("from", "scratch").stdout.strip()
        self.run("copy", "--quiet", container, str(root), "/")
        stand_ins = self.folder / f"stand-ins-{name}"
        for package, version in (STAND_INS | {"torch": torch}).items():
            write_distribution(stand_ins, package, version)
        self.run("copy", "--quiet", container, str(stand_ins), "/usr/local/lib/python3/dist-packages")
        # NVIDIA's image is searched in the same way: its packages lie outside of Debian's own folders.
        self.run("config", "--env", "PYTHONPATH=/usr/local/lib/python3/dist-packages", container)
        self.run("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        self.run("commit", "--quiet", "--rm", container, name)

    def build(self, name: str, check: bool = True, **arguments: str) -> subprocess.CompletedProcess[str]:
        """docker/Dockerfile with these build arguments."""
        flags = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        return self.run(
            "bud", "--format", "docker", "--isolation", "chroot", "--layers=false",
            "--volume", f"{HOST_CERTIFICATES}:{HOST_CERTIFICATES}:ro", *flags,
            "--file", "docker/Dockerfile", "--tag", name, ".", check=check,
        )  # fmt: skip


def write_distribution(folder: Path, package: str, version: str) -> None:
    """A package that consists of its version, installed as pip would."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(f"__version__ = {version!r}\n")
    metadata = folder / f"{package}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (metadata / "INSTALLER").write_text("pip\n")
    (metadata / "RECORD").write_text("")


def bootstrap(folder: Path) -> Path:
    """A minimal Debian with Python and pip; made once for a folder."""
    root = folder / f"{SUITE}-root"
    if not root.exists():
        partial = folder / f"{SUITE}-partial"
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(partial)],
            check=True, stdout=subprocess.DEVNULL, timeout=1200,
        )  # fmt: skip
        partial.rename(root)
    return root
