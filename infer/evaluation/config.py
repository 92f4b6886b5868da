"""The settings of the command `spinset evaluate`, and the recogniser and detector that they name."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from faces.recogniser import load_arcface, load_detector
from infer.evaluation.importers import Layout
from infer.evaluation.importers.stage import StageConfig
from infer.evaluation.measure import Metrics
from infer.evaluation.protocols import Name
from infer.metrics.likeness import FaceEmbedder
from jobs.devices import check_device
from manifests.errors import UserError
from weights.embedded import RECOGNISER, beyond_embedded
from weights.files import existing, sha256


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a model as a paper does on people nobody trained on (MODEL --data), or one folder of pictures against
    another (--pair)."""

    model: Positional[str] = ""
    """Folder of a model, or heads64: the embedded one, which knows procedural heads only."""
    data: str = ""
    """Folder or address of a dataset of held-out people, or of a copy of another set (--layout)."""
    pair: tuple[str, ...] = ()
    """Two folders instead of a model: generated pictures, and true ones of the same file names."""
    out: str = "evaluation"
    """Folder to write: results.json, results.md, failures.html and what resuming takes; the same command goes on."""
    protocol: Name = "spinmeround"
    """How many people, which views, how many steps: as the paper of this name has it."""
    layout: Layout = "spinset"
    """What --data is: a dataset of spinset, or your copy of NeRSemble, FaceScape or RenderMe-360."""
    stage: StageConfig = field(default_factory=StageConfig)
    selection: str = ""
    """Measure only what this selection keeps."""
    identities: int = 0
    """How many people, at random; the protocol's number unless told, all of them if there are fewer."""
    embeddings: str = ""
    """Take who a person is from this score table of the dataset, such as arcface; from the input view unless told."""
    nearest: str = ""
    """Training set of the model: adds the baseline that shows its head with the most similar embedding (from the table of
    --embeddings, or arcface)."""
    recogniser: str = ""
    """ArcFace .onnx for identities and their metrics; embedded is the one that knows procedural heads only."""
    allow_embedded: bool = False
    """Let the embedded recogniser and CLIP judge people who are not procedural heads; the results record it."""
    detector: str = ""
    """SCRFD .onnx that finds faces; without it the known cameras say where a face must be."""
    reid_limit: float = 0.0
    """Distance of embeddings below which the recogniser sees one person; re-identification is not counted at 0."""
    clip: str = ""
    """CLIP for the similarity of pictures, as open_clip names a folder (local-dir:FOLDER)."""
    weights: str = ""
    """Folder of the networks of LPIPS, DISTS and FID; where torch keeps its downloads unless told."""
    steps: int = 0
    """Sampling steps; the protocol's unless told."""
    scale: float = 0.0
    """Guidance; the protocol's unless told."""
    stages: int = 2
    """Stages of sampling: 2 samples seven anchors first, as `spinset views` does; 1 samples all views from the input."""
    input_normals: Literal["own", "stored"] = "own"
    """Normals of the input: in-painted by the model as for a photo, or the stored ones, which a photo does not have."""
    seed: int = 0
    """Of people, views and noise."""
    max_failed: int = 0
    """Largest number of people that may fail, because they cannot be read or placed, without exit code 3."""
    device: str = "cpu"
    """Where the model and the metrics run: cpu, cuda, or cuda:N for the GPU of index N."""

    def __post_init__(self) -> None:
        check_device(self.device)
        if len(self.pair) not in (0, 2):
            raise UserError(f"--pair has {len(self.pair)} folders; it takes two, of generated and of true pictures")
        if self.pair and (self.model or self.data):
            raise UserError("--pair compares two folders and takes no model and no --data")
        if not self.pair and not (self.model and self.data):
            raise UserError("give a model and --data, or two folders with --pair GENERATED TRUTH")
        if self.stages not in (1, 2):
            raise UserError(f"--stages is {self.stages}; 1 makes all views from the input, 2 makes anchors first")
        if self.identities < 0 or self.steps < 0 or self.reid_limit < 0 or (self.scale and self.scale < 1):
            raise UserError("--identities, --steps and --reid-limit are 0 or more, --scale is 1 or more")
        if self.max_failed < 0:
            raise UserError(f"--max-failed is {self.max_failed}; it must be 0 or more")
        if self.layout != "spinset" and (self.selection or self.embeddings):
            raise UserError(f"--selection and --embeddings are of datasets of spinset; --layout is {self.layout}")
        if self.layout != "spinset" and self.input_normals == "stored":
            raise UserError(f"--input-normals is stored, and {self.layout} has no normals; give own")


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
    """Whether embedded models judge people of a source that they do not know, which only --allow-embedded permits.

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
