"""A new format is one file and one line of a table."""

import sys
from pathlib import Path

from exports.config import SHARDED, UNPACKED, ExportConfig
from exports.export import export
from manifests.dataset import Dataset
from manifests.verify import verify

FORMATS = '''
import json


class Angles:
    """One file of azimuths per identity, and a list of the identities."""

    def __init__(self, dataset, subset, dest):
        self.identities = subset.identities.tolist()

    def files(self, identity):
        yield f"{identity.number}.json", json.dumps(identity.views.column("view").to_pylist()).encode()

    def finish(self, root):
        yield "all.json", [json.dumps(self.identities).encode()]


def signed(copy):
    yield "SIGNATURE", copy.plan.fingerprint.encode()
'''


def test_a_format_of_pictures_and_one_of_shards(eggs, tmp_path, monkeypatch):
    (tmp_path / "egg_formats.py").write_text(FORMATS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(UNPACKED, "angles", "egg_formats:Angles")
    monkeypatch.setitem(SHARDED, "signed", "egg_formats:signed")

    def made(format: str) -> Path:
        export(ExportConfig(eggs.storage.root, str(tmp_path / format), format, selection="clean"))
        return tmp_path / format

    assert {f.name: f.read_text() for f in made("angles").glob("[!e]*.json")} == {
        "0.json": "[0, 1, 2, 3, 4]", "2.json": "[0, 1, 3, 4]", "all.json": "[0, 2]"
    }  # fmt: skip
    copy = Dataset(str(made("signed")))
    assert (tmp_path / "signed" / "SIGNATURE").read_text() == copy.plan.fingerprint
    assert list(verify(copy)) == []
    sys.modules.pop("egg_formats")
