"""The status in files: the document has its schema, Prometheus reads the metrics, the page shows what there is."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from egg import EggConfig, egg_job
from jsonschema import validate
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter

import spinset
from datagen.generate import generate
from datagen.status_files import document, metrics, status_page, write_status
from jobs.pool import PoolConfig
from manifests.interval import Interval
from manifests.status import Status, summarise

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = DOCS / "status.schema.json"


@pytest.fixture(scope="module")
def eggs(tmp_path_factory) -> Path:
    """Seven eggs of which one failed."""
    out = tmp_path_factory.mktemp("eggs") / 'with "quotes"'
    generate(egg_job(str(out), PoolConfig(inline=True), source=EggConfig(faults=((4, "raise"),))))
    return out


@pytest.fixture(scope="module")
def status(eggs) -> Status:
    from manifests.dataset import Dataset

    return summarise(Dataset(str(eggs)))


def test_the_schema_in_the_docs_is_that_of_the_document(status):
    """`PYTHONPATH=.:tests python tests/datagen/test_status_files.py` writes it."""
    assert json.loads(SCHEMA.read_text()) == schema()
    for one in (status, replace(status, seconds_left=Interval(1.0, 0.0, 2.0), disk_free=None, disk_size=None)):
        validate(json.loads(document(one)), schema())
    with pytest.raises(Exception, match="is not of type"):
        validate({**json.loads(document(status)), "kept": "many"}, schema())


def test_prometheus_reads_the_metrics(status):
    whole = replace(status, seconds_left=Interval(100.0, 50.0, 150.0))
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics(whole))
        for sample in family.samples
    }
    here = ("dataset", status.url)
    assert found["spinset_identities", here, ("outcome", "kept")] == 6
    assert found["spinset_identities", here, ("outcome", "failed")] == 1
    assert found["spinset_failures", ("cause", "RuntimeError"), here] == 1
    assert found["spinset_seconds_left", ("bound", "high"), here] == 150
    assert found["spinset_planned_shards", here] == 4 and '"' in status.url
    assert {name for name, *_ in found} == {name for name, *_ in re.findall(r"^# TYPE (\S+)(.*)", metrics(whole), re.M)}


def test_the_dashboard_reads_metrics_that_exist(status):
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    there = set(re.findall(r"^# TYPE (\S+)", metrics(replace(status, seconds_left=Interval(1.0, 0.0, 2.0))), re.M))
    assert queries and {name for query in queries for name in re.findall(r"spinset_\w+", query)} <= there


def test_the_page_shows_outcomes_and_failures(status):
    page = status_page(status)
    assert "6 kept, 0 filtered, 1 failed" in page and "RuntimeError: egg 4 is broken" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_the_command_writes_all_and_prints_the_document(eggs, tmp_path, capsys):
    assert spinset.main(["status", str(eggs), "--json", "--files", str(tmp_path), "--watch", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["failures"][0]["traceback_sha256"] and printed["failures"][0]["attempts"] == 2
    assert sorted(f.name for f in tmp_path.iterdir()) == ["status.html", "status.json", "status.prom"]
    assert json.loads((tmp_path / "status.json").read_text()) == printed


def schema() -> dict:
    """The JSON schema of the document, from the types of its fields."""
    return TypeAdapter(Status).json_schema()


def test_files_are_written_at_once(status, tmp_path):
    write_status(status, str(tmp_path))
    write_status(status, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 3


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(schema(), indent=2) + "\n")
