"""LightlyStudio: pictures/, views.jsonl with the columns of `exports.columns`, and open.py, which opens both.

Source: LightlyStudio 1.2, GroupDataset. It has no format of its own, so open.py imports the folder once into a database beside
it. An identity is a group of named views. The groups hold what is known of identities, and the views all columns; the page
filters the latter, for the view that is chosen in its menu. What is null or NaN is absent, because a NaN breaks these filters.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from exports.columns import CuratedViews, view_name
from manifests.scores import IDENTITY
from manifests.subset import kept_identities

OPEN = '''\
"""Opens this folder in LightlyStudio 1.2: python open.py. The first time it imports all views, which takes a while."""

import itertools
import json
from pathlib import Path

import lightly_studio as studio

VIEWS = {views}
OF_IDENTITIES = {of_identities}


def main():
    folder = Path(__file__).resolve().parent
    imported = folder / "imported"
    studio.db_manager.connect(db_file=str(folder / "lightly_studio.db"), cleanup_existing=not imported.exists())
    if not imported.exists():
        dataset = studio.GroupDataset.create([(view, studio.SampleType.IMAGE) for view in VIEWS], name="identities")
        with open(folder / "views.jsonl") as lines:
            for _, rows in itertools.groupby(map(json.loads, lines), lambda row: row["identity"]):
                views = {{row["id"].partition("/")[2]: row for row in rows}}
                files = {{view: str(folder / row.pop("file")) for view, row in views.items()}}
                group = dataset.add_group_sample({{view: studio.CreateImage(path=file) for view, file in files.items()}})
                for view, row in views.items():
                    group[view].metadata.update(row)
                group.metadata.update({{name: row[name] for name in OF_IDENTITIES if name in row}})
        imported.touch()
    studio.start_gui()


if __name__ == "__main__":
    main()
'''


class LightlyStudio(CuratedViews):
    """One folder of pictures per identity, one table of the columns of all views, and the script that opens them."""

    folder = "pictures"

    def finish(self, root: Path) -> Iterator[tuple[str, Iterable[bytes]]]:
        yield "views.jsonl", self._rows()
        views = [view_name(view) for view in np.unique(self.subset.index.view[self.subset.rows]).tolist()]
        scores = [name for name, level in self.columns.levels.items() if level == IDENTITY]
        of_identities = ["identity", "defects", *scores]
        yield "open.py", [OPEN.format(views=json.dumps(views), of_identities=json.dumps(of_identities)).encode()]

    def _rows(self) -> Iterator[bytes]:
        for identity in kept_identities(self.dataset, self.subset, self.subset.identities.tolist()):
            for record in self.columns.records(identity):
                yield (json.dumps({"file": f"pictures/{record['id']}.{self.picture}", **record}) + "\n").encode()
