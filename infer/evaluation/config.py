"""The settings of the command `spinset evaluate`, and the recogniser and detector that they name."""

import hashlib
from pathlib import Path
from typing import Any

from faces.models import load_arcface, load_detector
from infer.config import EvaluateConfig
from infer.evaluation.measure import Metrics
from infer.metrics.likeness import FaceEmbedder
from weights.embedded import RECOGNISER, beyond_embedded
from weights.files import existing, sha256


def open_detector(config: EvaluateConfig) -> Any:
    """The face detector, or None if none is named; raises MissingFile or UserError if the file is none."""
    return load_detector(config.detector, config.device) if config.detector else None


def open_faces(config: EvaluateConfig, detector: Any) -> FaceEmbedder | None:
    """The recogniser, or None if none is named; raises MissingFile or UserError if the file is none."""
    if not config.recogniser:
        return None
    return FaceEmbedder(load_arcface(str(existing(_recogniser(config), "--recogniser")), config.device), detector)


def _recogniser(config: EvaluateConfig) -> str:
    return str(RECOGNISER) if config.recogniser == "embedded" else config.recogniser


def check_embedded(config: EvaluateConfig, source: str) -> bool:
    """Whether embedded models measure people of a source that they were not trained on, which --allow-embedded permits.

    Raises:
        UserError: they would, and are not allowed to.
    """
    models = {"--recogniser": _recogniser(config), "--clip": config.clip}
    beyond = [beyond_embedded(k, model, source, config.allow_embedded) for k, model in models.items() if model]
    return any(beyond)


def metric_settings(config: EvaluateConfig, metrics: Metrics, beyond_embedded: bool) -> dict[str, Any]:
    """The settings that the numbers of a row depend on, other than the pictures."""
    return {
        "metrics": sorted(metrics.pictures.measures),
        "features": metrics.inception is not None,
        "recogniser": metrics.faces.arcface.sha256 if metrics.faces else None,
        "detector": sha256(Path(config.detector)) if config.detector else None,
        "reid_limit": config.reid_limit,
        "clip": clip_fingerprint(config.clip) if metrics.clip else None,
        # Only where it has a meaning, so that evaluations of earlier versions can be resumed.
        **({"allow_embedded": True} if beyond_embedded else {}),
    }


def clip_fingerprint(clip: str) -> str:
    """A hash of all files of a CLIP folder, so that other weights are not resumed; the name of a CLIP that is no folder."""
    folder = Path(clip.removeprefix("local-dir:"))
    return folder_fingerprint(folder) if folder.is_dir() else clip


def folder_fingerprint(folder: Path, endings: tuple[str, ...] = ()) -> str:
    """A hash of the names and contents of all files of a folder, or of those with some endings."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and (not endings or p.suffix in endings)):
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()
