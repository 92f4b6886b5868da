"""Parquet files are read from memory of Arrow, and damage names the file and what mends it."""

import ast
from pathlib import Path

import pytest

from manifests.errors import DamagedData
from manifests.tables import open_parquet, read_parquet

ROOT = Path(__file__).parents[2]
PRODUCT = (*(p.parent.name for p in ROOT.glob("*/__init__.py")), "benchmarks")
FILE = "shards/heads-000000.views.parquet"
UNSAFE = {"read_table", "read_pandas", "read_feather", "ParquetDataset", "ParquetFile", "py_buffer"}
"""Functions of Arrow whose threads may outlive the Python object that they read from."""


def sources() -> list[Path]:
    return [ROOT / "spinset.py", ROOT / "demo.py", *(p for room in PRODUCT for p in (ROOT / room).rglob("*.py"))]


def unsafe_reads(source: str) -> list[int]:
    """The lines on which a parquet file is read otherwise than by `parquet_file`."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, of = node.func.attr, getattr(node.func.value, "id", None)
        if name in UNSAFE or (name == "read_parquet" and of == "pd"):
            lines.append(node.lineno)
    return lines


def test_the_search_finds_unsafe_reads():
    assert unsafe_reads("pq.read_table(file)\npq.ParquetFile(file)\npd.read_parquet(file)") == [1, 2, 3]
    assert unsafe_reads("parquet_file(data).read()\nread_parquet(storage, name)") == []


def test_no_module_gives_arrow_a_python_file():
    """Such a file, dropped by a thread of Arrow while Python ends, aborts the process: exit code 134."""
    found = {str(p.relative_to(ROOT)): unsafe_reads(p.read_text()) for p in sources()}
    assert len(found) > 100
    assert len(found.pop("manifests/tables.py")) == 1  # of a file that Arrow opened
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_columns_come_as_they_are_asked_for(small_dataset):
    rows = read_parquet(small_dataset.storage, FILE, ["view", "rgb.size", "identity"])
    assert rows.column_names == ["view", "rgb.size", "identity"]
    whole = read_parquet(small_dataset.storage, FILE)
    assert rows.column("rgb.size").to_pylist() == [entry["size"] for entry in whole.column("rgb").to_pylist()]
    assert rows.column("view").to_pylist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("what", ["missing", "empty", "cut", "rows"])
def test_damage_names_the_file_and_the_command(small_dataset, what):
    path = Path(small_dataset.storage.path(FILE))
    whole = path.read_bytes()
    if what == "missing":
        path.unlink()
    else:
        changed = {"empty": b"", "cut": whole[:-100], "rows": whole[:4] + b"\xff" * 200 + whole[204:]}
        path.write_bytes(changed[what])
    said = "is missing" if what == "missing" else r"is damaged \(.+\)"
    pattern = rf"^{FILE} {said}; run spinset repair {small_dataset.storage.url}$"
    with pytest.raises(DamagedData, match=pattern) as caught:
        read_parquet(small_dataset.storage, FILE)
    assert "\n" not in str(caught.value)


def test_another_command_may_mend(small_dataset):
    small_dataset.storage.write("scores/mesh.parquet", b"")
    with pytest.raises(DamagedData, match="run spinset score "):
        open_parquet(small_dataset.storage, "scores/mesh.parquet", "spinset score {}")
