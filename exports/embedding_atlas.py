"""Embedding Atlas: data.parquet with one row per view, its picture, and its columns (see `exports.columns`)."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from exports.columns import ViewColumns
from jobs.progress import step
from manifests.dataset import Dataset
from manifests.index import Subset
from manifests.subset import KeptIdentity, kept_identities

TABLE = "data.parquet"
IMAGE = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))

README = b"""\
`data.parquet` has one row per view: its picture, its direction in degrees, its planted defects where the source records them,
its scores (those of identities are repeated on their views), and what each selection says of it. Open it with

    embedding-atlas data.parquet --image image --disable-projection

Without `--disable-projection` the tool embeds the pictures by a model that it downloads, and lays them out by similarity.
"""


class EmbeddingAtlas:
    """One table of all views with their pictures, one group of rows per identity, so that one identity is in memory."""

    def __init__(self, dataset: Dataset, subset: Subset, dest: Path):
        self.dataset, self.subset, self.columns = dataset, subset, ViewColumns(dataset, subset)
        self.picture = dataset.plan.members["rgb"].rpartition(".")[2]

    def files(self, identity: KeptIdentity) -> Iterator[tuple[str, bytes]]:
        return iter(())

    def finish(self, root: Path) -> Iterator[tuple[str, Iterable[bytes]]]:
        identities = self.subset.identities.tolist()
        with (
            pq.ParquetWriter(root / TABLE, self.columns.schema.insert(1, IMAGE), compression="zstd") as writer,
            step(TABLE, len(identities)) as advance,
        ):
            for identity in kept_identities(self.dataset, self.subset, identities):
                rows = self.columns.of(identity)
                (pictures,) = identity.members("rgb")
                paths = [f"{name}.{self.picture}" for name in rows.column("id").to_pylist()]
                images = [{"bytes": data, "path": path} for data, path in zip(pictures, paths, strict=True)]
                writer.write_table(rows.add_column(1, IMAGE, pa.array(images, IMAGE.type)))
                advance()
        yield "README.md", [README]
