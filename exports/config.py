"""Settings of the commands export and pack."""

from dataclasses import dataclass

from tyro.conf import Positional

from manifests.errors import UserError, check_ranges
from manifests.subset import check_identities

UNPACKED = {
    "nerfstudio": "exports.nerfstudio:Nerfstudio",
    "colmap": "exports.colmap:Colmap",
    "eg3d": "exports.eg3d:Eg3d",
    "facelift": "exports.facelift:Facelift",
    "fiftyone": "exports.fiftyone:Fiftyone",
    "lightly-studio": "exports.lightly_studio:LightlyStudio",
    "embedding-atlas": "exports.embedding_atlas:EmbeddingAtlas",
}
"""Formats that unpack the shards, by name, each with its module and class."""
WITH_COLUMNS = ("fiftyone", "lightly-studio", "embedding-atlas")
"""Those of them that hold the scores of the dataset and the outcomes of its selections."""
SHARDED = {
    "huggingface": "exports.huggingface:huggingface",
    "croissant": "exports.croissant:croissant",
    "energon": "exports.energon:energon",
}
"""Formats that add files to a spinset dataset, by name, each with its module and function."""


@dataclass(frozen=True)
class ExportConfig:
    """Copy a dataset into the format of another tool; the same command resumes it."""

    out: Positional[str]
    """Folder or address of the dataset."""
    dest: Positional[str]
    """Local folder to create."""
    format: str
    """Name of the format: nerfstudio, colmap, eg3d or facelift; fiftyone, lightly-studio or embedding-atlas to curate; or
    huggingface, croissant or energon to keep the shards."""
    selection: str = ""
    """Name of a selection; all heads and views are exported without one."""
    identities: str = ""
    """A count of identities, which takes the first ones, or a range of numbers such as 200:300; all without it."""

    def __post_init__(self) -> None:
        if self.format not in {**UNPACKED, **SHARDED}:
            raise UserError(f"--format is {self.format!r}; there are {', '.join([*UNPACKED, *SHARDED])}")
        check_identities(self.identities)
        if "://" in self.dest:
            raise UserError(f"{self.dest} is an address; exports are made in a local folder, upload that")


@dataclass(frozen=True)
class PackConfig:
    """Copy the heads and views of a selection to a new dataset, with shards of another size; the same command resumes it."""

    out: Positional[str]
    """Folder or address of the dataset."""
    dest: Positional[str]
    """Folder or address of the pack, which is empty or holds an unfinished part of the same pack."""
    selection: str = ""
    """Name of a selection; all heads and views are copied without one."""
    identities: str = ""
    """A count of identities, which takes the first ones, or a range of numbers such as 200:300; all without it."""
    shard_mb: int = 500
    """Largest size of a shard in MB; a shard holds at least one identity."""

    def __post_init__(self) -> None:
        check_identities(self.identities)
        check_ranges(self, shard_mb=(1, 1_000_000))
