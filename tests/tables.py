"""Score tables from plain lists, for tests of whatever reads them; no pictures behind them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from small import small_plan

from manifests import schema
from manifests.dataset import Dataset
from manifests.plan import write_plan
from manifests.scores import VIEW, WHOLE, Lineage, column, table_schema, write_whole
from manifests.shards import SUFFIXES
from manifests.storage import Storage


def bare_dataset(folder: Path, identities: int = 4, per_shard: int = 2) -> Dataset:
    """A dataset with commit records and no pictures: all that selections look at."""
    plan, storage = small_plan(identities, per_shard), Storage(folder)
    write_plan(storage, plan)
    for shard in range(plan.shards):
        commit(storage, shard)
    return Dataset(storage)


def commit(storage: Storage, shard: int, sha256: str = "0") -> None:
    done = {
        "fingerprint": "",
        "files": {suffix: {"size": 0, "sha256": sha256} for suffix in SUFFIXES},
        "views": 0,
        "outcomes": {"kept": 2, "filtered": 0, "failed": 0},
        "run": {},
    }
    storage.write(f"shards/{schema.shard_name(shard)}.done.json", json.dumps(done).encode())


def write_scores(
    dataset: Dataset, table: str, views: dict[str, list], identities: dict[str, list], azimuths: list[float], **lineage
) -> None:
    """A whole table of heads seen from the same azimuths; a view's column is one list per identity, None for null."""
    count, per = dataset.plan.identities, len(azimuths)
    rows = {
        "identity": np.repeat(np.arange(count), per + 1),
        "view": np.tile(np.arange(-1, per), count),
        "azimuth": [None if v == WHOLE else azimuths[v] for v in np.tile(np.arange(-1, per), count)],
        "elevation": [None if v == WHOLE else 0.0 for v in np.tile(np.arange(-1, per), count)],
    }
    rows |= {name: [x for own in values for x in (None, *own)] for name, values in views.items()}
    rows |= {name: [x for own in values for x in (own, *[None] * per)] for name, values in identities.items()}
    fields = [column(n, VIEW, "test") for n in views] + [column(n, "identity", "test") for n in identities]
    arrays = [pa.array(rows[f.name], f.type, from_pandas=False) for f in table_schema(fields)]
    made = {"scorer": table, "version": 1, "weights_sha256": None, **lineage}
    write_whole(dataset, table, pa.table(arrays, schema=table_schema(fields)), Lineage(**made))
