"""Measures a folder of generated pictures against a folder of true ones of the same names, without a model or cameras."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from faces.alignment import over_white
from geometry.cameras import orbit
from infer.config import EvaluateConfig
from infer.evaluation.config import check_embedded, metric_settings, open_detector, open_faces
from infer.evaluation.held_out import HeldOut
from infer.evaluation.measure import PictureEmbedder, measure, open_metrics, true_views
from infer.evaluation.methods import EvaluatedViews
from infer.evaluation.report import EvaluationReport, grid, save_strip
from infer.evaluation.results import PERSON_METRICS, TRUTH, RowFile, measure_all, results_of, save_features
from infer.metrics.pixels import to_unit
from infer.photo import read_photo
from jobs.devices import require_device
from manifests.errors import MissingFile, UserError
from train.batch import from_bytes

GENERATED = "generated"
SUFFIXES = (".png", ".jpg", ".jpeg")
NO_DETECTOR = "without cameras a face must be found: it needs --recogniser and --detector"


def evaluate_pair(config: EvaluateConfig, clip: PictureEmbedder | None) -> dict[str, str]:
    """Measure one folder against another, write the report, and return why pairs failed; raises as `evaluate`."""
    require_device(config.device)
    folders = [Path(folder) for folder in config.pair]
    beyond_embedded = check_embedded(config, "pictures of an unknown source")
    pairs = find_pairs(*folders)
    first = read_picture(next(iter(pairs.values()))[0])
    detector = open_detector(config)
    faces = open_faces(config, detector) if detector is not None else None
    smallest = min(first.shape[1:])
    metrics = open_metrics(smallest, config.weights, config.device, faces, clip, config.reid_limit, NO_DETECTOR)
    missing = dict(metrics.missing) | dict.fromkeys(PERSON_METRICS, "whose pictures these are is not known")
    missing["normal_error"] = "two folders of pictures hold no normals"
    settings = {
        "pair": [_listing(folder, [files[side] for files in pairs.values()]) for side, folder in enumerate(folders)],
        **metric_settings(config, metrics, beyond_embedded),
    }
    out = Path(config.out)

    def row(name: str) -> dict[str, Any]:
        generated, true = (read_picture(file) for file in pairs[name])
        if generated.shape != true.shape:
            raise UserError(
                f"{pairs[name][0]} is {_size(generated)} px, {pairs[name][1]} {_size(true)}; they must be equal"
            )
        truth = true_views(metrics, _single_view(name, true))
        made = EvaluatedViews(generated[None], None, truth.cameras, truth.held.points)
        if metrics.inception is not None:
            features = {GENERATED: metrics.inception(to_unit(made.rgb)), TRUTH: metrics.inception(truth.rgb)}
            save_features(out, name, features)
        save_strip(out, name, grid([torch.stack([true, generated])]))
        # A single picture has no metrics of a person.
        methods = {GENERATED: {"views": measure(metrics, truth, made)["views"], "person": {}}}
        return {"name": name, "caption": "The truth, then what was made.", "methods": methods}

    rows, failed = measure_all(RowFile(out, settings), list(pairs), row)
    EvaluationReport(
        title=f"{folders[0].name} against {folders[1].name}",
        about={
            "generated": str(folders[0]),
            "true": str(folders[1]),
            "failed": failed,
            "settings": settings,
            "versions": {name: version(name) for name in ("spinset", "torch", "torchmetrics")},
        },
        protocol=None,
        methods={GENERATED: folders[0].name},
        rows=rows,
        results={GENERATED: results_of(rows, GENERATED, missing, out if metrics.inception else None)},
        notes=[
            *(f"{name} could not be measured: {reason}." for name, reason in failed.items()),
            "Identities and cameras of these pictures are not known, so metrics of people and of directions are left out.",
        ],
    ).write(out)
    return failed


def find_pairs(generated: Path, true: Path) -> dict[str, tuple[Path, Path]]:
    """The pictures of both folders by their paths in the folders, without endings.

    Raises:
        MissingFile: a folder does not exist.
        UserError: there are no pictures, or some are in one folder only.
    """
    sides = [_pictures(folder) for folder in (generated, true)]
    for own, other, folder in ((sides[0], sides[1], true), (sides[1], sides[0], generated)):
        if lacking := sorted(own.keys() - other.keys()):
            raise UserError(f"{folder} lacks {len(lacking)} of {len(own)} pictures (first: {lacking[0]})")
    return {name: (sides[0][name], sides[1][name]) for name in sorted(sides[0])}


def read_picture(file: Path) -> Float32[Tensor, "3 h w"]:
    """A picture in [-1, 1], over white where it is transparent; raises as `read_photo`."""
    photo = read_photo(file)
    rgb = photo.rgb if photo.alpha is None else over_white(photo.rgb, photo.alpha)
    return from_bytes(rgb)


def _pictures(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise MissingFile(f"there is no folder {folder}")
    found: dict[str, Path] = {}
    for file in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{folder} has {found[name].name} and {file.name}; one of them must go")
        found[name] = file
    if not found:
        raise UserError(f"{folder} has no pictures; PNG and JPEG are read")
    return found


def _single_view(name: str, true: Float32[Tensor, "3 h w"]) -> HeldOut:
    """A true picture as the input and the only target of a person, with cameras that are not used."""
    zeros = np.zeros(2)
    flat = np.zeros(2, np.float32)
    pictures = torch.stack([true, true])
    return HeldOut(
        name, (name, name), pictures, None, None, orbit(zeros, zeros), flat, flat, np.zeros((5, 3), np.float32), None
    )


def _listing(folder: Path, files: list[Path]) -> str:
    """A hash of the names and contents of a folder's pictures."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _size(picture: Float32[Tensor, "3 h w"]) -> str:
    return f"{picture.shape[2]} x {picture.shape[1]}"
