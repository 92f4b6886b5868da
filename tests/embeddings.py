"""Score tables of embeddings, as a recogniser would leave them."""

from collections.abc import Collection

import numpy as np
import pyarrow as pa

from manifests.dataset import Dataset
from manifests.draws import generator
from manifests.scores import IDENTITY, VIEW, WHOLE, Lineage, column, gather, table_schema, tar_sha256, write_part


def write_embeddings(
    dataset: Dataset,
    without: Collection[int] = (),
    seed: int = 0,
    width: int = 8,
    views: int = 3,
    recogniser: str | None = None,
) -> np.ndarray:
    """Embeddings of the first two views of each identity; their unit means."""
    vectors = generator(seed, "embeddings").normal(size=(dataset.plan.identities, 2, width)).astype(np.float16)
    fields = [column("embedding", VIEW, "test", pa.list_(pa.float16(), width)), column("mean_cosine", IDENTITY, "test")]
    lineage = Lineage("arcface", 1, recogniser)
    for shard in dataset.committed():
        rows = [(i, v) for i in dataset.plan.identities_of(shard) for v in range(WHOLE, views)]
        found = [vectors[i, v].tolist() if v in (0, 1) and i not in without else None for i, v in rows]
        values = {"identity": [i for i, _ in rows], "view": [v for _, v in rows], "embedding": found}
        arrays = [pa.array(values.get(f.name, [None] * len(rows)), f.type) for f in table_schema(fields)]
        part = pa.table(arrays, schema=table_schema(fields))
        write_part(dataset, "arcface", shard, part, lineage, tar_sha256(dataset, shard))
    assert gather(dataset, "arcface", lineage) == ([], {})
    means = vectors.astype(np.float32).mean(1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)
