"""What the command `spinset evaluate` is told, and the recogniser it names."""

from pathlib import Path
from typing import Any

from faces.recogniser import load_arcface, load_detector
from infer.config import EvaluateConfig
from infer.evaluation.measure import Kit
from infer.metrics.likeness import FaceEmbedder
from weights.embedded import RECOGNISER, beyond_embedded
from weights.files import existing, sha256


def open_detector(config: EvaluateConfig) -> Any:
    """The face detector, or None; raises FileNotFoundError or ValueError if the file is none."""
    return load_detector(config.detector, config.device) if config.detector else None


def open_faces(config: EvaluateConfig, detector: Any) -> FaceEmbedder | None:
    """The recogniser, or None; raises FileNotFoundError or ValueError if the file is none."""
    if not config.recogniser:
        return None
    return FaceEmbedder(load_arcface(str(existing(_recogniser(config), "--recogniser")), config.device), detector)


def _recogniser(config: EvaluateConfig) -> str:
    return str(RECOGNISER) if config.recogniser == "embedded" else config.recogniser


def check_embedded(config: EvaluateConfig, source: str) -> bool:
    """Whether embedded models judge people of a source that they do not know, which only --allow-embedded permits.

    Raises:
        UserError: they would, and are not allowed to.
    """
    models = {"--recogniser": _recogniser(config), "--clip": config.clip}
    beyond = [beyond_embedded(k, model, source, config.allow_embedded) for k, model in models.items() if model]
    return any(beyond)


def kit_settings(config: EvaluateConfig, kit: Kit, beyond_embedded: bool) -> dict[str, Any]:
    """What the numbers of a row depend on, beside the pictures."""
    return {
        "metrics": sorted(kit.pictures.measures),
        "features": kit.inception is not None,
        "recogniser": kit.faces.arcface.sha256 if kit.faces else None,
        "detector": sha256(Path(config.detector)) if config.detector else None,
        "reid_limit": config.reid_limit,
        "clip": config.clip if kit.clip else None,
        # Only where it has a meaning, so that evaluations of earlier versions can be resumed.
        **({"allow_embedded": True} if beyond_embedded else {}),
    }
