"""Settings of the commands score and select, and of early rejection."""

import re
from dataclasses import dataclass, field, replace
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from filters.policies import policy_file
from filters.scorers import SCORERS
from jobs.devices import check_device
from jobs.pool import PoolConfig
from manifests.errors import UserError
from weights.files import absolute


@dataclass(frozen=True)
class ClipConfig:
    """Which CLIP is asked, and what."""

    model: str = ""
    """A model name of open_clip, such as ViT-L-14-quickgelu for OpenAI's weights, with --clip.checkpoint; or
    local-dir:FOLDER in open_clip's own format. By default the embedded model, which judges procedural heads only."""
    checkpoint: str = ""
    """The weights of a named model: a local .safetensors or .pt file."""
    templates: tuple[str, ...] = ()
    """More prompts per class, such as "a photo of the {}"; a class is then the mean of its prompts, in more columns."""
    min_turn: float = 90.0
    """Views turned less than this from the front (degrees) are not looked at."""
    table: str = "clip_janus"
    """The table to write; give another name to keep the scores of several models."""

    def __post_init__(self) -> None:
        if bad := [t for t in self.templates if t.count("{}") != 1]:
            raise UserError(f"--clip.templates holds {bad[0]!r}; a template has one {{}} where the class goes")
        if not 0 <= self.min_turn <= 180:
            raise UserError(f"--clip.min-turn is {self.min_turn:g}; it must be between 0 and 180 degrees")
        if self.model.startswith("hf-hub:"):
            raise UserError(f"--clip.model is {self.model!r}; weights are never downloaded, give local-dir:FOLDER")

    def absolute(self) -> "ClipConfig":
        """The same, with paths that hold wherever a worker runs."""
        kind, _, folder = self.model.partition(":")
        model = f"{kind}:{absolute(folder)}" if folder else self.model
        return replace(self, model=model, checkpoint=absolute(self.checkpoint))


@dataclass(frozen=True)
class ArcFaceConfig:
    """Which recogniser is asked, about which views."""

    model: str = ""
    """A local .onnx of 112-pixel crops to embeddings, such as glintr100.onnx. By default the embedded recogniser,
    which judges procedural heads only."""
    detector: str = ""
    """A local SCRFD .onnx that finds faces; without it the known cameras say where a face must be."""
    max_turn: float = 60.0
    """The frontal cone: views turned less than this (degrees)"""
    max_elevation: float = 30.0
    """and no more than this above or below."""
    min_views: int = 3
    """An identity with fewer embeddings in the cone gets NaN."""
    back_turn: float = 120.0
    """Views turned more than this are tested for the mirror image of the face."""
    min_detection: float = 0.5
    """What the detector must be sure of."""
    table: str = "arcface"
    """The table to write; give another name to keep the scores of several recognisers."""

    def __post_init__(self) -> None:
        if not 0 < self.max_turn < self.back_turn <= 180:
            raise UserError(
                f"--arcface.max-turn is {self.max_turn:g} and --arcface.back-turn {self.back_turn:g}; "
                "the cone must end before the back begins, within 180 degrees"
            )
        if self.min_views < 2:
            raise UserError(f"--arcface.min-views is {self.min_views}; a pair needs 2 views or more")

    def absolute(self) -> "ArcFaceConfig":
        """The same, with paths that hold wherever a worker runs."""
        return replace(self, model=absolute(self.model), detector=absolute(self.detector))


@dataclass(frozen=True)
class ScoreConfig:
    """Add score tables to a dataset; the same command resumes. Shards are read, never written."""

    out: Positional[str]
    """Folder or address of the dataset."""
    scorers: tuple[str, ...] = tuple(SCORERS)
    """Any of mesh, image, clip_janus, arcface and duplicates (which reads the table of arcface)."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    arcface: ArcFaceConfig = field(default_factory=ArcFaceConfig)
    allow_embedded: bool = False
    """Let the embedded models score heads that are not procedural; the tables record it."""
    device: str = "cpu"
    """Where the models run: cpu, cuda, or cuda:N for the GPU of index N."""
    decoders: int = 0
    """Threads that read and decode ahead of the model; 0 is one per core of a worker, at least two."""
    replace: bool = False
    """Score anew what other weights, settings or versions scored."""
    pool: Annotated[PoolConfig, OmitArgPrefixes] = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.scorers if name not in SCORERS]:
            raise UserError(f"--scorers holds {unknown[0]!r}; there are {', '.join(SCORERS)}")
        if not self.scorers or len(set(self.scorers)) < len(self.scorers):
            raise UserError("--scorers must name one scorer or more, each once")
        check_device(self.device, self.pool.gpus_per_worker)
        if self.decoders < 0:
            raise UserError(f"--decoders is {self.decoders}; it must be at least 0")


@dataclass(frozen=True)
class RejectConfig:
    """Look at six small views of each head first, and make no more of a head that fails a policy."""

    policy: str = ""
    """early, or a JSON file whose rules read the tables image, clip_janus and arcface; every head is made unless given."""
    resolution: int = 128
    """Of the views that are looked at."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    arcface: ArcFaceConfig = field(default_factory=ArcFaceConfig)
    allow_embedded: bool = False
    """Let the embedded models judge heads that are not procedural; the plan of the dataset records it."""

    def __post_init__(self) -> None:
        if self.resolution < 32:
            raise UserError(f"--reject.resolution is {self.resolution}; less than 32 pixels show no face")
        if self.policy:
            policy_file(self.policy)


@dataclass(frozen=True)
class SelectConfig:
    """Turn scores and a policy into a selection: which views and identities are used, and why the others are not."""

    out: Positional[str]
    """Folder or address of the dataset."""
    policy: str = "gen3d-face"
    """A preset (gen3d-face, spinmeround, diffportrait360) or a JSON file."""
    name: str = ""
    """The name of the selection; the policy's own unless told."""
    diff: tuple[str, str] | None = None
    """Make nothing; list what differs between two selections."""

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", self.name):
            raise UserError(f"--name is {self.name!r}; it may hold a-z, 0-9, '-', '_' and '.'")
