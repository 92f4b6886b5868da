"""The status of a dataset in files: a document for programs, metrics for Prometheus, and a page for people."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any

from manifests.status import RENDERING, WAITING, Status
from manifests.storage import Storage


def write_status(status: Status, folder: str) -> None:
    """Write status.json, status.prom and status.html to a folder, each at once, so that no reader sees a part of one."""
    storage = Storage(folder)
    storage.write("status.json", document(status).encode())
    storage.write("status.prom", metrics(status).encode())
    storage.write("status.html", status_page(status).encode())


def document(status: Status) -> str:
    """The fields of `Status` as JSON; docs/status.schema.json is their schema."""
    return json.dumps(asdict(status), indent=2) + "\n"


def metrics(status: Status) -> str:
    """The status in the text format of Prometheus, as its node exporter reads it from a file."""
    outcomes = {"kept": status.kept, "filtered": status.filtered, "failed": status.failed}
    bounds = asdict(status.seconds_left) if status.seconds_left else {}
    rows = [
        ("planned_identities", "Identities of the plan.", [({}, status.identities)]),
        ("identities", "Identities that are done, by outcome.", [({"outcome": o}, n) for o, n in outcomes.items()]),
        ("planned_shards", "Shards of the plan.", [({}, status.shards)]),
        ("shards", "Shards that are committed.", [({}, status.shards_done)]),
        ("damaged_records", "Commit records that do not parse.", [({}, len(status.damaged))]),
        ("views", "Views that are committed.", [({}, status.views)]),
        ("bytes", "Bytes of the committed files.", [({}, status.bytes)]),
        ("identities_per_hour", "Rate in the hour before the last commit.", [({}, status.identities_per_hour)]),
        ("identity_seconds", "Mean worker time per identity.", [({}, status.identity_seconds)]),
        ("seconds_left", "Real time left: value, and the bounds of a 90 % interval.", _labelled("bound", bounds)),
        ("stage_seconds", "Mean seconds per identity of a worker's stages.", _labelled("stage", status.stage_seconds)),
        ("waiting_ratio", "Share of worker time spent waiting for meshes and files.", [({}, status.waiting)]),
        ("failures", "Failed identities by cause.", _labelled("cause", status.failures_by_cause)),
        ("commands", "Commands that are at work.", [({}, status.commands)]),
        ("host_identities", "Identities by machine.", [({"host": h.host}, h.identities) for h in status.hosts]),
        ("host_failed", "Failed identities by machine.", [({"host": h.host}, h.failed) for h in status.hosts]),
        (
            "host_last_commit_seconds",
            "Time of a machine's last commit since 1970.",
            [({"host": h.host}, datetime.fromisoformat(h.last_commit).timestamp()) for h in status.hosts],
        ),
    ]
    if status.disk_free is not None and status.disk_size is not None:
        rows += [("disk_free_bytes", "Free bytes on the disk of the dataset.", [({}, status.disk_free)])]
        rows += [("disk_size_bytes", "Size of the disk of the dataset.", [({}, status.disk_size)])]
    return "".join(_metric(f"spinset_{name}", about, {"dataset": status.url}, own) for name, about, own in rows)


def status_page(status: Status) -> str:
    """A page that needs nothing else."""
    from pages.page import Section, page, render  # with jinja2, which printing a status does not need

    groups = {"rendering": RENDERING, "waiting for meshes and files": WAITING}
    of = {stage: group for group, stages in groups.items() for stage in stages}
    stages = [(name, seconds, of.get(name, "writing")) for name, seconds in status.stage_seconds.items()]
    values = {"status": status, "stages": stages, "total": sum(status.stage_seconds.values())}
    names = {"progress": "Progress", "stages": "Stages", "machines": "Machines", "failures": "Failures"}
    sections = [Section(title, render("datagen", "status.html", part=part, **values)) for part, title in names.items()]
    return page(f"Status of {status.url}", f"Computed at {status.time} from the files of the dataset.", sections)


def _labelled(label: str, values: dict[str, Any]) -> list[tuple[dict[str, str], int | float]]:
    return [({label: name}, value) for name, value in values.items()]


def _metric(name: str, about: str, common: dict[str, str], rows: Iterable[tuple[dict[str, str], int | float]]) -> str:
    """One metric with all of its samples; nothing if it has none."""
    lines = [f"{name}{{{_labels(common | labels)}}} {float(value):.10g}\n" for labels, value in rows]
    return "".join([f"# HELP {name} {about}\n# TYPE {name} gauge\n", *lines]) if lines else ""


def _labels(labels: dict[str, str]) -> str:
    # The escapes of the format are those of JSON.
    return ",".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in labels.items())
