"""The part of a dataset that an export or a pack copies: what a selection keeps, of all identities or of some."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from manifests import schema
from manifests.dataset import Dataset
from manifests.errors import UserError, damaged
from manifests.index import Index, Subset, open_index
from manifests.reader import read_members
from manifests.selection import Selection, read_selection
from manifests.shards import member_name


@dataclass(frozen=True, eq=False)
class KeptIdentity:
    """One identity of a subset: its row of the identities table, and the rows of its views that are kept."""

    dataset: Dataset
    shard: int
    row: dict[str, Any]
    views: pa.Table

    @property
    def number(self) -> int:
        return self.row["identity"]

    def members(self, *names: str) -> Iterator[list[bytes]]:
        """Some members (rgb, alpha, normal, json), one list each in the order of the views.

        Raises:
            DamagedData: the bytes of a member are not those that were written.
        """
        keys, extensions = self.views.column("key").to_pylist(), self.dataset.plan.members
        for name, members in zip(names, read_members(self.dataset, self.shard, self.views, *names), strict=True):
            for key, entry, data in zip(keys, self.views.column(name).to_pylist(), members, strict=True):
                if hashlib.sha256(data).digest() != entry["sha256"]:
                    tar, member = self.dataset.file(self.shard, ".tar"), member_name(key, extensions[name])
                    raise damaged(tar, "is damaged", self.dataset.storage.url, member=member)
            yield members

    def mesh(self) -> bytes | None:
        """The mesh as PLY; None unless the dataset was generated with --save-meshes."""
        name, storage = schema.mesh_file(self.number), self.dataset.storage
        return storage.read(name) if storage.exists(name) else None


def open_subset(dataset: Dataset, selection: str = "", identities: str = "") -> tuple[Subset, Selection | None]:
    """The views of a complete dataset that a selection keeps, or all without one, and that selection.

    `identities` is a count of identities, or a range of their numbers such as 200:300.

    Raises:
        UserError: shards are missing, there is no such selection, or nothing is left.
    """
    if missing := len(dataset.pending()):
        raise UserError(
            f"{missing} of {dataset.plan.shards} shards of {dataset.storage.url} are not made yet; run spinset generate"
        )
    index = open_index(dataset)
    chosen = fitting_selection(dataset, selection, index) if selection else None
    subset = index.select(chosen)
    subset = subset.restricted_to(_asked_for(subset.identities, identities))
    if not len(subset.rows):
        raise UserError(f"nothing is left of {dataset.storage.url} to copy: no view of these identities is kept")
    return subset, chosen


def fitting_selection(dataset: Dataset, name: str, index: Index) -> Selection:
    """Read a selection; raises UserError if it does not exist, or judged other views than those of the index."""
    chosen = read_selection(dataset, name)
    if not np.array_equal(chosen.judged_views, schema.view_codes(index.identity, index.view)):
        raise UserError(f"selection {name!r} judged other views than there are now; run spinset select again")
    return chosen


def check_identities(text: str) -> None:
    """Raise UserError unless this is a count or a range of identities."""
    if text and not re.fullmatch(r"\d+|\d*:\d*", text):
        raise UserError(f"--identities is {text!r}; give a count such as 100, or numbers such as 200:300")


def _asked_for(identities: np.ndarray, text: str) -> np.ndarray:
    """Which identities a count or a range means, as a mask."""
    check_identities(text)
    first, colon, end = text.partition(":")
    if colon:
        return (identities >= int(first or 0)) & (identities < int(end or 1 << 62))
    return np.arange(len(identities)) < int(text or 1 << 62)


def kept_identities(dataset: Dataset, subset: Subset, identities: Iterable[int]) -> Iterator[KeptIdentity]:
    """Read the tables of some identities of a subset shard by shard; ascending order reads each table once."""
    shard, views, rows, first = -1, schema.VIEWS.empty_table(), {}, 0
    for identity in identities:
        if (home := dataset.plan.shard_of(identity)) != shard:
            shard, views = home, dataset.views(home)
            rows = {row["identity"]: row for row in dataset.identities(shard).to_pylist()}
            first = subset.index.first_row(shard)
        own = subset.rows_of(int(np.searchsorted(subset.identities, identity)))
        yield KeptIdentity(dataset, shard, rows[identity], views.take(own - first))
