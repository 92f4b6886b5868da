"""The columns of a dataset's tables, versioned, and the names of its files, keys and members."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Int64

VERSION = 1

_VERSIONED = {b"spinset.schema": str(VERSION).encode()}

WHOLE = -1
"""The view number of an identity's own row in score tables and selections."""

MEMBERS = ("rgb", "alpha", "normal", "json")
"""The members of every sample, in the order in which they lie in the tar; a plan may declare further ones."""

_member = pa.struct([("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.binary(32))])
_named_member = pa.struct([("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string())])


def member_names(declared: Iterable[str]) -> tuple[str, ...]:
    """The members that a plan declares, in the order in which they lie in the tar: MEMBERS, then further ones by name."""
    return (*MEMBERS, *sorted(set(declared) - set(MEMBERS)))


def views_schema(members: Sequence[str], hashes_as_text: bool = False) -> pa.Schema:
    """Columns of one row per view.

    They are its camera (OpenCV camera-to-world, intrinsics normalised by the image size, both row-major; angles in degrees)
    and, per member, the byte where its data begins in the tar, its size and its hash.
    """
    return pa.schema(
        [
            ("key", pa.string()),
            ("identity", pa.int64()),
            ("view", pa.int16()),
            ("azimuth", pa.float32()),
            ("elevation", pa.float32()),
            ("c2w", pa.list_(pa.float32(), 16)),
            ("K", pa.list_(pa.float32(), 9)),
            *((name, _named_member if hashes_as_text else _member) for name in members),
        ],
        metadata=None if hashes_as_text else _VERSIONED,
    )


def all_views_schema(members: Sequence[str]) -> pa.Schema:
    """Columns of the views of a whole dataset: those of one shard with hashes as text, and the shard of each view."""
    return views_schema(members, hashes_as_text=True).append(pa.field("shard", pa.int32()))


VIEWS = views_schema(MEMBERS)
ALL_VIEWS = all_views_schema(MEMBERS)

IDENTITIES = pa.schema(
    [
        ("identity", pa.int64()),
        ("seed", pa.int64()),
        ("outcome", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("views", pa.int16()),
        ("latent_sha256", pa.string()),
        ("defects", pa.list_(pa.struct([("kind", pa.string()), ("strength", pa.float32())]))),
        (
            "mesh",
            pa.struct(
                [
                    ("vertices", pa.int64()),
                    ("faces", pa.int64()),
                    ("components", pa.int32()),
                    ("largest_share", pa.float32()),
                    ("holes", pa.int32()),
                    ("tunnels", pa.int32()),
                    ("watertight", pa.bool_()),
                ]
            ),
        ),
        ("facts", pa.string()),
    ],
    metadata=_VERSIONED,
)
"""One row per identity: `outcome` is kept, filtered (on purpose) or failed, with the stage and the reason of the last two;
`defects` lists the defects that a procedural source planted, and is null for other sources; `mesh` holds figures of the
surface before clean-up; `facts` is what the source records about the identity, as JSON."""

SHARDS = "shards"
"""The folder of the shards."""
DONE = ".done.json"
"""The suffix of the file that commits a shard."""

KEPT, FILTERED, FAILED = "kept", "filtered", "failed"


def shard_name(shard: int) -> str:
    return f"heads-{shard:06d}"


def shard_number(file: str) -> int | None:
    """The number of the shard that a file belongs to; None for a file of no shard."""
    number = file.removeprefix("heads-").partition(".")[0]
    return int(number) if number.isdecimal() and file.startswith(f"{shard_name(int(number))}.") else None


def sample_key(identity: int, view: int) -> str:
    """The WebDataset key of a view: no dots, unique in the dataset, and an identity's views sort together."""
    return f"{identity:07d}_v{view:03d}"


def mesh_file(identity: int) -> str:
    """The file of an identity's mesh inside a dataset that was generated with --save-meshes."""
    return f"meshes/{identity:07d}.ply"


def view_codes(identity: Int[np.ndarray, " n"], view: Int[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """One number per view of a dataset, sorted as the views are; view numbers have 16 bits."""
    return (identity.astype(np.int64) << 16) | view.astype(np.int64)
