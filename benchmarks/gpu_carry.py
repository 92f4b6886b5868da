"""Gathers what a bare GPU machine lacks beside this repository: `python benchmarks/gpu_carry.py`.

Such a machine has torch and the usual scientific packages and reaches no package index. The packages below are
downloaded as wheels for its Python, by the versions of constraints.txt, unpacked and packed again as one `.gpu/site.tar.xz`,
which is printed with its size. There, `make gpu CARRIED=1` unpacks and uses it.

The repository itself is read from its folder, so only its metadata is packed.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("diffusers", "docstring_parser", "embreex", "ftfy", "importlib_metadata", "insightface", "open_clip_torch"),
    *("trimesh", "typeguard", "tyro", "wcwidth"),
)
LEFT_OUT = ("diffusers/pipelines/", "diffusers/modular_pipelines/", "open_clip/model_configs/")
"""Parts of packages that spinset does not import; without them the archive is a third smaller."""
KEPT = ("open_clip/model_configs/ViT-L-14.json", "diffusers/pipelines/__init__.py")
LIMIT = 24_000_000
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True)
class Config:
    """Gather the packages that a bare GPU machine lacks."""

    python: str = "3.12"
    """Version of Python on that machine."""
    out: str = ".gpu"
    """Folder to write site.tar.xz to; git ignores the default."""


def main() -> int:
    config = tyro.cli(Config)
    archive = ROOT / config.out / "site.tar.xz"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheels, site = Path(scratch, "wheels"), Path(scratch, "site")
        target = ["--python-version", config.python, "--implementation", "cp", "--only-binary", ":all:", "--no-deps"]
        target += [option for platform in PLATFORMS for option in ("--platform", platform)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels), *target]
        subprocess.run([*command, *map(pinned, PACKAGES)], check=True)
        for wheel in sorted(wheels.iterdir()):
            with zipfile.ZipFile(wheel) as packed:
                names = [n for n in packed.namelist() if n in KEPT or not n.startswith(LEFT_OUT)]
                packed.extractall(site, names)
                print(f"{wheel.stat().st_size / 1e6:6.2f} MB  {wheel.name}")
        metadata = site / "spinset-0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(distribution("spinset").read_text("METADATA") or "")
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            for entry in sorted(site.iterdir()):
                tar.add(entry, entry.name)
    size = archive.stat().st_size
    print(f"{size / 1e6:6.2f} MB  {archive.relative_to(ROOT)}, to be carried (limit {LIMIT / 1e6:.0f} MB)")
    return 0 if size < LIMIT else 3


def pinned(package: str) -> str:
    """A package with the version that constraints.txt gives it."""
    wanted = package.replace("_", "-").lower()
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.partition("==")[0].replace("_", "-").lower() == wanted:
            return line
    raise LookupError(f"constraints.txt has no version of {package}")


if __name__ == "__main__":
    sys.exit(main())
