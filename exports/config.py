"""Settings of the commands export and pack."""

from dataclasses import dataclass

from tyro.conf import Positional

from manifests.errors import UserError
from manifests.keep import check_identities

UNPACKED = {
    "nerfstudio": "exports.nerfstudio:Nerfstudio",
    "colmap": "exports.colmap:Colmap",
    "eg3d": "exports.eg3d:Eg3d",
    "facelift": "exports.facelift:Facelift",
}
"""Formats with one file per picture, by name, each with its module and class."""
SHARDED = {
    "huggingface": "exports.huggingface:huggingface",
    "croissant": "exports.croissant:croissant",
    "energon": "exports.energon:energon",
}
"""Formats that add files to a spinset dataset, by name, each with its module and function."""


@dataclass(frozen=True)
class ExportConfig:
    """Copy a dataset in the format of another tool; the same command resumes it."""

    out: Positional[str]
    """Folder or address of the dataset."""
    dest: Positional[str]
    """Folder to make."""
    format: str
    """nerfstudio, colmap, eg3d, facelift, huggingface, croissant or energon."""
    selection: str = ""
    """What to export; everything that was made unless told."""
    identities: str = ""
    """A count, of the first that are kept, or a range of numbers such as 200:300; all unless told."""

    def __post_init__(self) -> None:
        if self.format not in {**UNPACKED, **SHARDED}:
            raise UserError(f"--format is {self.format!r}; there are {', '.join([*UNPACKED, *SHARDED])}")
        check_identities(self.identities)
        if "://" in self.dest:
            raise UserError(f"{self.dest} is an address; exports are made in a local folder, upload that")


@dataclass(frozen=True)
class PackConfig:
    """Copy what a selection keeps to a dataset of its own, with shards of another size; the same command resumes it."""

    out: Positional[str]
    """Folder or address of the dataset."""
    dest: Positional[str]
    """Folder or address of the pack: empty, or the same pack unfinished."""
    selection: str = ""
    """What to keep; everything that was made unless told."""
    identities: str = ""
    """A count, of the first that are kept, or a range of numbers such as 200:300; all unless told."""
    shard_mb: int = 500
    """Size of a shard in MB, at most (one identity always fits)."""

    def __post_init__(self) -> None:
        check_identities(self.identities)
        if self.shard_mb < 1:
            raise UserError(f"--shard-mb is {self.shard_mb}; it must be at least 1")
