"""From the rows of people to the figures of a method: means with their counts, and how sure they are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.numpy import load_file

from geometry.directions import turned
from infer.evaluation.agreement import AGREEMENT
from infer.evaluation.measure import FACE_METRICS, VIEW_METRICS
from infer.evaluation.protocols import better
from infer.metrics.figures import Figure, mean_figure
from infer.metrics.frechet import FID, fid_figures
from infer.metrics.perceptual import PERCEPTUAL
from weights.tensors import save_tensors

FRONT = 90.0
"""Degrees turned from the front up to which a view is one of the front."""
PICTURE_METRICS = ("l2", "psnr", "ssim", *PERCEPTUAL)
PERSON_METRICS = (*FACE_METRICS, *AGREEMENT)
FEATURES, TRUTH = "features", "truth"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """One figure of one method."""

    figure: Figure
    stderr: float | None
    """The standard error of the mean over people."""

    def as_json(self) -> dict[str, Any]:
        f = self.figure
        found = {"name": f.name, "value": f.value, "count": f.count, "stderr": self.stderr, "reason": f.reason}
        return {key: value for key, value in found.items() if value not in (None, "")}


def results_of(rows: Sequence[Row], method: str, missing: Mapping[str, str], folder: Path | None) -> list[Result]:
    """All figures of a method: of views, of the fronts and the backs among them, of people, of the whole set."""
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
    """Keep what FID is made of."""
    (folder / FEATURES).mkdir(exist_ok=True)
    tensors = {method: torch.from_numpy(np.ascontiguousarray(f)) for method, f in features.items()}
    save_tensors(tensors, _features_file(folder, name))


def person_value(row: Row, method: str, metric: str) -> float:
    """One number for a person: the mean over views, or what is said of all of them; NaN without any."""
    own = row["methods"][method]
    if metric in own["person"]:
        return float(own["person"][metric])
    values = np.array(own["views"].get(metric, []), float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def worst(rows: Sequence[Row], method: str, metric: str, count: int) -> list[tuple[Row, float]]:
    """The people a method does worst with, and their numbers."""
    valued = [(row, person_value(row, method, metric)) for row in rows]
    valued = [(row, value) for row, value in valued if not np.isnan(value)]
    return sorted(valued, key=lambda pair: pair[1], reverse=better(metric) == "lower")[:count]


def measured(rows: Iterable[Row], method: str) -> list[str]:
    """The metrics of views and people that have a number for anyone."""
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
