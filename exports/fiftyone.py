"""FiftyOne: data/, metadata.json and samples.json of its own format, FiftyOneDataset, with an identity as a group of views.

Source: FiftyOne 1.22, FiftyOneDatasetExporter and FiftyOneDatasetImporter. Every view of the rig is a slice of the groups, and
the grid shows one slice at a time; it opens on the first view that most identities have. Each view is a sample, so
its scores and outcomes are fields that the sidebar filters (see `exports.columns`); what is null or NaN is absent.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from exports.columns import CuratedViews, view_name
from manifests.subset import kept_identities

VERSION = "1.0.0"
"""The version of FiftyOne whose fields these are; newer ones migrate the dataset when they open it."""

KINDS = {pa.int64(): "Int", pa.float64(): "Float", pa.string(): "String"}


class Fiftyone(CuratedViews):
    """One folder of pictures per identity under data/, and the two documents of the dataset."""

    folder = "data"

    def finish(self, root: Path) -> Iterator[tuple[str, Iterable[bytes]]]:
        yield "samples.json", self._samples()
        yield "metadata.json", [json.dumps(self._metadata(), indent=1).encode()]

    def _samples(self) -> Iterator[bytes]:
        before = '{"samples": [\n'
        for identity in kept_identities(self.dataset, self.subset, self.subset.identities.tolist()):
            group = {"_id": {"$oid": self._digest(identity.number)[:24]}, "_cls": "Group"}
            for record in self.columns.records(identity):
                name, digest = record.pop("id"), self._digest(record["identity"], record["view"])
                sample = {
                    "_id": {"$oid": digest[:24]},
                    "filepath": f"data/{name}.{self.picture}",
                    "tags": [],
                    "_media_type": "image",
                    "_rand": int(digest[24:36], 16) / 16**12,
                    "group": {**group, "name": view_name(record["view"])},
                    **record,
                }
                yield f"{before}{json.dumps(sample)}".encode()
                before = ",\n"
        yield b"\n]}\n"

    def _metadata(self) -> dict[str, Any]:
        views, counts = np.unique(self.subset.index.view[self.subset.rows], return_counts=True)
        group = [_field("id", "ObjectId", db_field="_id"), _field("name", "String")]
        own = [_field(field.name, KINDS[field.type]) for field in self.columns.schema if field.name != "id"]
        return {
            "version": VERSION,
            "media_type": "group",
            "group_field": "group",
            "group_media_types": {view_name(view): "image" for view in views.tolist()},
            "default_group_slice": view_name(int(views[counts.argmax()])),
            "sample_fields": [
                _field("id", "ObjectId", db_field="_id"),
                _field("filepath", "String"),
                _field("tags", "List", subfield="fiftyone.core.fields.StringField"),
                _field("metadata", "EmbeddedDocument", embedded_doc_type="fiftyone.core.metadata.Metadata"),
                _field("created_at", "DateTime", read_only=True),
                _field("last_modified_at", "DateTime", read_only=True),
                _field("_media_type", "String"),
                _field("_rand", "Float"),
                _field("_dataset_id", "ObjectId"),
                _field("group", "EmbeddedDocument", embedded_doc_type="fiftyone.core.groups.Group", fields=group),
                *own,
            ],
        }

    def _digest(self, *numbers: int) -> str:
        """64 hexadecimal digits that are the same in every export of a view or an identity."""
        return hashlib.sha256(repr((self.dataset.plan.fingerprint, *numbers)).encode()).hexdigest()


def _field(name: str, kind: str, **changes: Any) -> dict[str, Any]:
    """A field as FiftyOne stores it."""
    return {"name": name, "ftype": f"fiftyone.core.fields.{kind}Field", "db_field": name, "fields": [], **changes}
