"""Two folders of pictures of the same names, measured without a model and without cameras."""

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
from infer.evaluation.config import check_embedded, kit_settings, open_detector, open_faces
from infer.evaluation.held_out import HeldOut
from infer.evaluation.measure import PictureEmbedder, look_at_truth, measure, open_kit
from infer.evaluation.novel_views import Shown
from infer.evaluation.report import Report, grid, save_strip
from infer.evaluation.rows import Rows
from infer.evaluation.summary import PERSON_METRICS, TRUTH, results_of, save_features
from infer.metrics.pixels import to_unit
from infer.photo import read_photo
from jobs.devices import require_device
from jobs.progress import step
from manifests.errors import MissingFile, UserError

GENERATED = "generated"
SUFFIXES = (".png", ".jpg", ".jpeg")
NO_DETECTOR = "without cameras a face must be found: it needs --recogniser and --detector"


def evaluate_pair(config: EvaluateConfig, clip: PictureEmbedder | None) -> Path:
    """Measure one folder against another; raises as `evaluate`."""
    require_device(config.device)
    folders = [Path(folder) for folder in config.pair]
    beyond_embedded = check_embedded(config, "pictures of an unknown source")
    pairs = find_pairs(*folders)
    first = read_picture(next(iter(pairs.values()))[0])
    detector = open_detector(config)
    faces = open_faces(config, detector) if detector is not None else None
    kit = open_kit(min(first.shape[1:]), config.weights, config.device, faces, clip, config.reid_limit, NO_DETECTOR)
    missing = dict(kit.missing) | dict.fromkeys(PERSON_METRICS, "whose pictures these are is not known")
    missing["normal_error"] = "two folders of pictures hold no normals"
    settings = {
        "pair": [_listing(folder, [files[side] for files in pairs.values()]) for side, folder in enumerate(folders)],
        **kit_settings(config, kit, beyond_embedded),
    }
    out = Path(config.out)
    rows = Rows(out, settings)
    with step("evaluate", len(pairs), sum(name in rows for name in pairs)) as advance:
        for name, files in pairs.items():
            if name in rows:
                continue
            generated, true = (read_picture(file) for file in files)
            if generated.shape != true.shape:
                raise UserError(f"{files[0]} is {_size(generated)} px, {files[1]} {_size(true)}; they must be equal")
            truth = look_at_truth(kit, _alone(name, true))
            shown = Shown(generated[None], None, truth.cameras, truth.held.points)
            if kit.inception is not None:
                features = {GENERATED: kit.inception(to_unit(shown.rgb)), TRUTH: kit.inception(truth.rgb)}
                save_features(out, name, features)
            save_strip(out, name, grid([torch.stack([true, generated])]))
            found = measure(kit, truth, shown)
            rows.add(
                {
                    "name": name,
                    "caption": "The truth, then what was made.",
                    # A single picture says nothing of how a person holds together.
                    "methods": {GENERATED: {"views": found["views"], "person": {}}},
                }
            )
            advance()
    kept = [rows.rows[name] for name in pairs]
    report = Report(
        title=f"{folders[0].name} against {folders[1].name}",
        about=_about(folders, settings),
        protocol=None,
        methods={GENERATED: folders[0].name},
        rows=kept,
        results={GENERATED: results_of(kept, GENERATED, missing, out if kit.inception else None)},
        notes=[
            "Whose pictures these are and where they were seen from is not known, so no metric of a person or a view is."
        ],
    )
    report.write(out)
    return out


def find_pairs(generated: Path, true: Path) -> dict[str, tuple[Path, Path]]:
    """Pictures of both folders by their names below them, endings left out.

    Raises:
        FileNotFoundError: a folder is not there.
        ValueError: there are no pictures, or some are in one folder only; says which.
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
    return torch.from_numpy(rgb).permute(2, 0, 1).float() / 127.5 - 1


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


def _alone(name: str, true: Float32[Tensor, "3 h w"]) -> HeldOut:
    """A true picture as the input and the one target of a person whose cameras mean nothing."""
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


def _about(folders: list[Path], settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "generated": str(folders[0]),
        "true": str(folders[1]),
        "settings": settings,
        "versions": {name: version(name) for name in ("spinset", "torch", "torchmetrics")},
    }


def _size(picture: Float32[Tensor, "3 h w"]) -> str:
    return f"{picture.shape[2]} x {picture.shape[1]}"
