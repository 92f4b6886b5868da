"""The bytes of small datasets of fixed seeds, of a pack, score tables and every export, against the hashes of before.

A change of code must not change them. `PYTHONPATH=.:tests python tests/datagen/test_bytes.py` writes the hashes anew, for a
change that means to. They are kept by the instructions that numpy takes for sines, because processors with and without AVX-512
differ in last bits, which now and then decide a pixel.
"""

import hashlib
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from egg import egg_job
from numpy.lib.introspect import opt_func_info
from small import choose

from datagen.config import GenerateConfig, ImageConfig, MeshConfig, ProceduralConfig, SourceConfig
from datagen.generate import generate
from exports.config import ExportConfig, PackConfig
from exports.export import export
from exports.pack import pack
from filters.config import ScoreConfig
from filters.score import score
from jobs.pool import PoolConfig
from manifests.dataset import Dataset

HASHES = Path(__file__).parents[1] / "golden" / "dataset_bytes.json"
LIBRARIES = ("embreex", "numpy", "pillow", "pyarrow", "scikit-image", "scipy", "torch", "trimesh")
"""Their versions decide bytes too: encoders, meshing, the layout of tables."""
INLINE = PoolConfig(inline=True)


def make(folder: Path) -> None:
    """Make one of everything that is written for others to read."""
    source = SourceConfig(procedural=ProceduralConfig(defect_rate=0.5))
    generate(
        GenerateConfig(
            *(str(folder / "procedural"), source),
            **{"identities": 1, "seed": 8, "rig": "orbit-5", "resolution": 32, "identities_per_shard": 1},
            mesh=MeshConfig(64),
            pool=INLINE,
        )
    )
    score(ScoreConfig(str(folder / "procedural"), ("mesh", "image"), pool=INLINE))
    eggs = _eggs(folder, "eggs", "scatter-3", identities=3, save_meshes=True, image=ImageConfig("webp"))
    choose(eggs, "clean", {(1, -1), (1, 0), (1, 1), (1, 2), (2, 2)})
    pack(PackConfig(eggs.storage.root, str(folder / "pack"), selection="clean", shard_mb=1))
    for format in ("nerfstudio", "colmap", "eg3d", "huggingface", "croissant", "energon"):
        export(ExportConfig(eggs.storage.root, str(folder / format), format, selection="clean"))
    for rig in ("facelift-6", "facelift-32"):
        made = _eggs(folder, rig, rig, identities=1, image=ImageConfig("png"), resolution=16)
        export(ExportConfig(made.storage.root, str(folder / f"{rig}.export"), "facelift"))


def _eggs(folder: Path, name: str, rig: str, **changes) -> Dataset:
    return generate(egg_job(str(folder / name), INLINE, rig=rig, **changes))


def hashes(folder: Path) -> dict[str, str]:
    """The hash of every file that is meant to be the same each time, by its name; lists hold absolute folders.

    The index is a cache of what the tables hold.
    """
    others = (".done.json", ".sqlite", "index.safetensors")
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.endswith(others))
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes().replace(bytes(folder), b"")).hexdigest()[:16]
        for f in files
    }


def versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def instructions() -> str:
    """The instructions by which numpy computes sines on this processor."""
    return opt_func_info("^sin$")["sin"]["dd"]["current"]


def recorded() -> dict[str, Any]:
    """The versions of libraries, and the hashes by instructions."""
    return json.loads(HASHES.read_text())


def test_the_bytes_are_those_of_before(tmp_path):
    before = recorded()
    if before["versions"] != versions():
        pytest.skip(f"the hashes are of other library versions: {before['versions']}")
    if instructions() not in before["hashes"]:
        pytest.skip(f"the hashes are of processors with {' or '.join(before['hashes'])}, this one has {instructions()}")
    make(tmp_path)
    assert hashes(tmp_path) == before["hashes"][instructions()]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        before = recorded()
        others = before["hashes"] if before["versions"] == versions() else {}
        anew = {"versions": versions(), "hashes": {**others, instructions(): hashes(Path(folder))}}
    HASHES.write_text(json.dumps(anew, indent=1) + "\n")
