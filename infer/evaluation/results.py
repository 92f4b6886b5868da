"""The results of an evaluation: a file with one row per person, which resumes, and the figures that are made of all rows."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.numpy import load_file

from geometry.directions import turned
from infer.evaluation.measure import AGREEMENT, CROSS_CONTROL, FACE_METRICS, VIEW_METRICS
from infer.evaluation.protocols import better
from infer.metrics.figures import Figure, mean_figure
from infer.metrics.frechet import FID, fid_figures
from infer.metrics.perceptual import PERCEPTUAL
from jobs.progress import step
from manifests.errors import DamagedData, UserError
from weights.files import save_tensors

ROWS_FILE = "rows.jsonl"
FRONT = 90.0
"""Largest angle to the front, in degrees, of views that count as front views. Source: none; DiffPortrait360 names no angle."""
PICTURE_METRICS = ("l2", "psnr", "ssim", *PERCEPTUAL)
PERSON_METRICS = (*FACE_METRICS, *AGREEMENT, *CROSS_CONTROL)
FEATURES, TRUTH = "features", "truth"

Row = Mapping[str, Any]


class RowFile:
    """A file of JSON lines: the settings that all rows share, then a row per person, which holds numbers or why it `failed`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        """Begin a file, or read the rows of an earlier run.

        Raises:
            UserError: the file is of other settings, or is no evaluation.
        """
        self.file = folder / ROWS_FILE
        self.rows: dict[str, dict[str, Any]] = {}
        # Tuples become lists in JSON, so that both sides compare equal.
        settings = json.loads(json.dumps(settings))
        lines = self._whole_lines() if self.file.exists() else []
        if not lines:
            folder.mkdir(parents=True, exist_ok=True)
            self._append({"settings": settings})
            return
        stored = lines[0].get("settings")
        if stored is None:
            raise UserError(f"{self.file} is no evaluation; give another --out")
        if different := [name for name in {*stored, *settings} if stored.get(name) != settings.get(name)]:
            name = min(different)
            raise UserError(
                f"{folder} holds an evaluation with other settings ({name} was {_short(stored.get(name))}, is "
                f"{_short(settings.get(name))}); give another --out"
            )
        self.rows = {row["name"]: row for row in lines[1:]}

    def is_measured(self, name: str) -> bool:
        """Whether a person has numbers; people that failed are tried again."""
        return name in self.rows and "failed" not in self.rows[name]

    def add(self, row: dict[str, Any]) -> None:
        """Append the row of one person; a later row of a person replaces an earlier one."""
        self._append(row)
        self.rows[row["name"]] = row

    def _append(self, value: Mapping[str, Any]) -> None:
        with self.file.open("a") as file:
            # NaN and Infinity are written as Python reads them; only this class reads these lines.
            file.write(json.dumps(value) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _whole_lines(self) -> list[dict[str, Any]]:
        """The lines, without one that was being written when an earlier run was killed."""
        data = self.file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self.file.write_bytes(whole)
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise UserError(f"{self.file} is damaged ({error}); give another --out") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def measure_all(
    rows: RowFile, names: Sequence[str], measure_one: Callable[[str], dict[str, Any]]
) -> tuple[list[Row], dict[str, str]]:
    """Measure every name that has no numbers yet; returns the measured rows, and the reasons of those that failed by name.

    Raises:
        UserError: nothing could be measured; the message holds the first reason.
    """
    with step("evaluate", len(names), sum(rows.is_measured(name) for name in names)) as advance:
        for name in names:
            if rows.is_measured(name):
                continue
            try:
                rows.add(measure_one(name))
            except (UserError, DamagedData) as error:
                rows.add({"name": name, "failed": str(error)})
            advance()
    failed = {name: rows.rows[name]["failed"] for name in names if not rows.is_measured(name)}
    if len(failed) == len(names):
        raise UserError(f"none of {len(names)} could be measured (first: {next(iter(failed.values()))})")
    return [rows.rows[name] for name in names if rows.is_measured(name)], failed


@dataclass(frozen=True)
class Result:
    """One figure of one method."""

    figure: Figure
    stderr: float | None
    """The standard error of the mean over people, if there are two or more."""

    def as_json(self) -> dict[str, Any]:
        f = self.figure
        found = {"name": f.name, "value": f.value, "count": f.count, "stderr": self.stderr, "reason": f.reason}
        return {key: value for key, value in found.items() if value not in (None, "")}


def results_of(rows: Sequence[Row], method: str, missing: Mapping[str, str], folder: Path | None) -> list[Result]:
    """All figures of a method: over views, over front and back views, over people, and over the whole set."""
    found: list[Result] = []
    endings = ("", "_front", "_back") if "azimuth" in rows[0] else ("",)
    for metric in (*PICTURE_METRICS, *VIEW_METRICS):
        found += [_of_views(rows, method, metric, ending, missing) for ending in endings]
    if "azimuth" in rows[0]:
        for metric in PERSON_METRICS:
            values = np.array([row["methods"][method]["person"].get(metric, np.nan) for row in rows], float)
            found.append(Result(_figure(metric, values, missing, metric), _stderr(values)))
    return found + [Result(figure, None) for figure in _fid(rows, method, missing, folder)]


def save_features(folder: Path, name: str, features: Mapping[str, Float[np.ndarray, "k d"]]) -> None:
    """Store the Inception features of a person's views, by method; FID needs those of all people."""
    (folder / FEATURES).mkdir(exist_ok=True)
    tensors = {method: torch.from_numpy(np.ascontiguousarray(f)) for method, f in features.items()}
    save_tensors(tensors, _features_file(folder, name))


def person_value(row: Row, method: str, metric: str) -> float:
    """One number for a person: a metric of the person, or the mean of a metric over the views; NaN if there is none."""
    values_of = row["methods"][method]
    if metric in values_of["person"]:
        return float(values_of["person"][metric])
    values = np.array(values_of["views"].get(metric, []), float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def worst(rows: Sequence[Row], method: str, metric: str, count: int) -> list[tuple[Row, float]]:
    """The people with the worst numbers of a method, the worst first, and these numbers."""
    valued = [(row, person_value(row, method, metric)) for row in rows]
    valued = [(row, value) for row, value in valued if not np.isnan(value)]
    return sorted(valued, key=lambda pair: pair[1], reverse=better(metric) == "lower")[:count]


def measured(rows: Iterable[Row], method: str) -> list[str]:
    """The metrics of views and people that any row has."""
    names = [name for row in rows for part in ("views", "person") for name in row["methods"][method][part]]
    return list(dict.fromkeys(names))


def _of_views(rows: Sequence[Row], method: str, metric: str, ending: str, missing: Mapping[str, str]) -> Result:
    per_person = []
    for row in rows:
        values = np.array(row["methods"][method]["views"].get(metric, []), float)
        if ending and len(values):
            front = turned(np.array(row["azimuth"], float)) <= FRONT
            values = values[front if ending == "_front" else ~front]
        per_person.append(values)
    values = np.concatenate(per_person)
    means = np.array([np.nanmean(v) if (~np.isnan(v)).any() else np.nan for v in per_person])
    return Result(_figure(metric + ending, values, missing, metric), _stderr(means))


def _figure(name: str, values: Float[np.ndarray, " n"], missing: Mapping[str, str], metric: str) -> Figure:
    return mean_figure(name, values, missing.get(metric, "there was nothing to compare"))


def _stderr(values: Float[np.ndarray, " n"]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None


def _fid(rows: Sequence[Row], method: str, missing: Mapping[str, str], folder: Path | None) -> list[Figure]:
    if FID[0] in missing or folder is None:
        return [Figure(name, None, reason=missing.get(name, "it was not measured")) for name in FID]
    stored = [load_file(_features_file(folder, row["name"])) for row in rows]
    made, true = (np.concatenate([features[key] for features in stored]) for key in (method, TRUTH))
    if "azimuth" not in rows[0]:
        return fid_figures(made, true, np.zeros(len(made)), np.zeros(len(true)))[:1]
    azimuth = np.concatenate([np.array(row["azimuth"], float) for row in rows])
    return fid_figures(made, true, azimuth, azimuth)


def _features_file(folder: Path, name: str) -> Path:
    return folder / FEATURES / f"{name.replace('/', '__')}.safetensors"
