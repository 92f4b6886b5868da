"""The views of a dataset to copy: those that a selection keeps, of all identities or of some, with their data."""

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
from manifests.reader import read_members
from manifests.selection import Selection, read_selection
from manifests.shards import member_name


@dataclass(frozen=True, eq=False)
class Keep:
    """The identities to copy, in ascending order, and the selection that decides their views; without one, every view."""

    identities: np.ndarray
    selection: Selection | None
    counts: np.ndarray
    """Number of views of each identity."""

    def mask(self, views: pa.Table) -> np.ndarray:
        """The rows of a views table to copy, as a mask."""
        identity, view = (views.column(name).to_numpy() for name in ("identity", "view"))
        wanted = np.isin(identity, self.identities)
        if self.selection is not None:
            wanted &= schema.is_among(self.selection.kept_views, identity, view)
        return wanted

    def incomplete(self, views: int) -> np.ndarray:
        """The identities with fewer than `views` views."""
        return self.identities[self.counts < views]


@dataclass(frozen=True, eq=False)
class KeptIdentity:
    """One identity in a dataset: its row of the identities table, and the rows of its views."""

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
        keys = self.views.column("key").to_pylist()
        for name, members in zip(names, read_members(self.dataset, self.shard, self.views, *names), strict=True):
            for key, entry, data in zip(keys, self.views.column(name).to_pylist(), members, strict=True):
                if hashlib.sha256(data).digest() != entry["sha256"]:
                    file, member = (
                        self.dataset.file(self.shard, ".tar"),
                        member_name(key, self.dataset.plan.members[name]),
                    )
                    raise damaged(file, "is damaged", self.dataset.storage.url, member=member)
            yield members

    def mesh(self) -> bytes | None:
        """The mesh as PLY; None unless the dataset was generated with --save-meshes."""
        name, storage = schema.mesh_file(self.number), self.dataset.storage
        return storage.read(name) if storage.exists(name) else None


def choose(dataset: Dataset, selection: str = "", identities: str = "") -> Keep:
    """Choose what to copy of a complete dataset: what a selection keeps, or everything without one.

    `identities` is a count of identities, or a range of their numbers such as 200:300.

    Raises:
        UserError: shards are missing, there is no such selection, or nothing is left.
    """
    if missing := len(dataset.pending()):
        raise UserError(
            f"{missing} of {dataset.plan.shards} shards of {dataset.storage.url} are not made yet; run spinset generate"
        )
    made = dataset.all_identities.sort_by("identity").to_pydict()
    views = {identity: count for identity, count in zip(made["identity"], made["views"], strict=True) if count}
    chosen = read_selection(dataset, selection) if selection else None
    if chosen is not None:
        if _views_of_each(chosen.judged_views) != views:
            raise UserError(f"selection {selection!r} judged other views than there are now; run spinset select again")
        views = _views_of_each(chosen.kept_views)
    there = _some(np.array(sorted(views), np.int64), identities)
    if not len(there):
        raise UserError(f"nothing is left of {dataset.storage.url} to copy: no view of these identities is kept")
    return Keep(there, chosen, np.array([views[i] for i in there.tolist()]))


def check_identities(text: str) -> None:
    """Raise UserError unless this is a count or a range of identities."""
    if text and not re.fullmatch(r"\d+|\d*:\d*", text):
        raise UserError(f"--identities is {text!r}; give a count such as 100, or numbers such as 200:300")


def kept_identities(dataset: Dataset, keep: Keep, identities: Iterable[int]) -> Iterator[KeptIdentity]:
    """Read the tables of these identities shard by shard; ascending order reads each table once."""
    shard, views, rows = -1, schema.VIEWS.empty_table(), {}
    for identity in identities:
        if (home := dataset.plan.shard_of(identity)) != shard:
            shard = home
            views = dataset.views(shard)
            views = views.filter(pa.array(keep.mask(views)))
            rows = {row["identity"]: row for row in dataset.identities(shard).to_pylist()}
        own = views.filter(pa.array(views.column("identity").to_numpy() == identity))
        if not len(own):
            raise UserError(f"identity {identity} has no view in {dataset.storage.url}; run spinset select again")
        yield KeptIdentity(dataset, shard, rows[identity], own)


def _views_of_each(codes: np.ndarray) -> dict[int, int]:
    """How many views each identity has among those of some `schema.view_codes`."""
    identity, counts = np.unique(schema.identity_of(codes), return_counts=True)
    return dict(zip(identity.tolist(), counts.tolist(), strict=True))


def _some(identities: np.ndarray, text: str) -> np.ndarray:
    check_identities(text)
    if ":" not in text:
        return identities[: int(text)] if text else identities
    first, _, end = text.partition(":")
    return identities[(identities >= int(first or 0)) & (identities < int(end or 1 << 62))]
