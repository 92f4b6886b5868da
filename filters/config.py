"""Settings of the commands score and select, and of early rejection."""

import re
from dataclasses import dataclass, field, replace
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional

from filters.policies import policy_file
from filters.scorers import SCORERS
from jobs.devices import check_device
from jobs.pool import PoolConfig
from manifests.errors import UserError, check_ranges
from weights.files import absolute


@dataclass(frozen=True)
class ClipConfig:
    """CLIP model, prompts and views of the scorer clip_janus, which finds faces in views of the back."""

    model: str = ""
    """Model of open_clip: a name together with a checkpoint, or local-dir:FOLDER; by default the one for procedural heads."""
    checkpoint: str = ""
    """Path of the weights of a named model, as .safetensors or .pt."""
    templates: tuple[str, ...] = ()
    """Further prompts for each class, such as "a photo of the {}"; their mean embedding adds columns to the table."""
    min_turn: float = 90.0
    """Smallest azimuth of scored views, in degrees from the front."""
    table: str = "clip_janus"
    """Name of the score table; different names keep the scores of several models."""

    def __post_init__(self) -> None:
        if bad := [t for t in self.templates if t.count("{}") != 1]:
            raise UserError(f"--clip.templates holds {bad[0]!r}; a template has one {{}} where the class goes")
        check_ranges(self, "--clip.", min_turn=(0, 180))
        if self.model.startswith("hf-hub:"):
            raise UserError(f"--clip.model is {self.model!r}; weights are never downloaded, give local-dir:FOLDER")

    def absolute(self) -> "ClipConfig":
        """The same config with absolute paths, which hold in the working folder of any worker."""
        kind, _, folder = self.model.partition(":")
        model = f"{kind}:{absolute(folder)}" if folder else self.model
        return replace(self, model=model, checkpoint=absolute(self.checkpoint))


@dataclass(frozen=True)
class ArcFaceConfig:
    """Face recogniser and views of the scorer arcface, which compares the faces of one head."""

    model: str = ""
    """Path of an .onnx from crops of 112 pixels to embeddings; by default the one for procedural heads."""
    detector: str = ""
    """Path of an SCRFD .onnx detector of faces; without it faces are located from the known cameras."""
    max_turn: float = 60.0
    """Largest azimuth of frontal views, in degrees from the front."""
    max_elevation: float = 30.0
    """Largest elevation of frontal views above or below the horizon, in degrees."""
    min_views: int = 3
    """Smallest number of frontal views with a face; an identity with fewer gets NaN."""
    back_turn: float = 120.0
    """Smallest azimuth, in degrees from the front, of views that are tested for the mirror image of the face."""
    min_detection: float = 0.5
    """Lowest detection score that counts as a face, from 0 to 1."""
    table: str = "arcface"
    """Name of the score table; different names keep the scores of several recognisers."""

    def __post_init__(self) -> None:
        bounds = {"max_turn": (0, 180), "back_turn": (0, 180), "max_elevation": (0, 90), "min_detection": (0, 1)}
        check_ranges(self, "--arcface.", **bounds, min_views=(2, 10_000))
        if not 0 < self.max_turn < self.back_turn:
            raise UserError(
                f"--arcface.max-turn is {self.max_turn:g} and --arcface.back-turn {self.back_turn:g}; "
                "the first must be above 0 and below the second"
            )

    def absolute(self) -> "ArcFaceConfig":
        """The same config with absolute paths, which hold in the working folder of any worker."""
        return replace(self, model=absolute(self.model), detector=absolute(self.detector))


@dataclass(frozen=True)
class ScoreConfig:
    """Add score tables to a dataset; the same command resumes. Shards are read, never written."""

    out: Positional[str]
    """Folder or address of the dataset."""
    scorers: tuple[str, ...] = tuple(SCORERS)
    """Names of scorers: mesh, image, clip_janus, arcface and duplicates, which reads the table of arcface."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    arcface: ArcFaceConfig = field(default_factory=ArcFaceConfig)
    allow_embedded: bool = False
    """Allow the embedded models to score heads that are not procedural; the tables record it."""
    device: str = "cpu"
    """Device of the models: cpu, cuda, or cuda:N for the GPU of index N."""
    decoders: int = 0
    """Number of threads of each worker that read and decode ahead; 0 takes one per core, at least two."""
    replace: bool = False
    """Replace scores of other weights, settings or versions."""
    pool: Annotated[PoolConfig, OmitArgPrefixes] = field(default_factory=PoolConfig)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.scorers if name not in SCORERS]:
            raise UserError(f"--scorers holds {unknown[0]!r}; there are {', '.join(SCORERS)}")
        if not self.scorers or len(set(self.scorers)) < len(self.scorers):
            raise UserError("--scorers must name one scorer or more, each once")
        check_device(self.device, self.pool.gpus_per_worker)
        check_ranges(self, decoders=(0, 1024))


@dataclass(frozen=True)
class RejectConfig:
    """Early rejection: six small views of each head are scored first, and a head that fails a policy is not made."""

    policy: str = ""
    """Preset early, or path of a JSON policy on the tables image, clip_janus and arcface; without one, all heads are made."""
    resolution: int = 128
    """Width and height of the small views in pixels."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    arcface: ArcFaceConfig = field(default_factory=ArcFaceConfig)
    allow_embedded: bool = False
    """Allow the embedded models to judge heads that are not procedural; the plan of the dataset records it."""

    def __post_init__(self) -> None:
        check_ranges(self, "--reject.", resolution=(32, 4096))
        if self.policy:
            policy_file(self.policy)


@dataclass(frozen=True)
class SelectConfig:
    """Turn scores and a policy into a selection: the views and identities that are used, and why others are not."""

    out: Positional[str]
    """Folder or address of the dataset."""
    policy: str = "gen3d-face"
    """Name of a preset (gen3d-face, spinmeround, diffportrait360) or path of a JSON policy."""
    name: str = ""
    """Name of the selection; by default the name of the policy."""
    diff: tuple[str, str] | None = None
    """Names of two selections whose differences are listed; nothing is written."""

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", self.name):
            raise UserError(f"--name is {self.name!r}; it may hold a-z, 0-9, '-', '_' and '.'")


@dataclass(frozen=True)
class DecideConfig:
    """Record the verdicts of a person on identities and views, list all verdicts, or take the last one back.

    An item is written 17 for an identity and 42/v063 for view 63 of identity 42.
    """

    out: Positional[str]
    """Folder or address of the dataset."""
    keep: tuple[str, ...] = ()
    """Items that are kept whatever the rules say."""
    drop: tuple[str, ...] = ()
    """Items that are dropped."""
    unsure: tuple[str, ...] = ()
    """Items on which the person has no verdict; the rules decide."""
    clear: tuple[str, ...] = ()
    """Items whose earlier verdicts no longer count."""
    reason: str = ""
    """The reason, such as janus or floater; `select` repeats it."""
    who: str = ""
    """Name of the person; by default the name of the user on this machine."""
    list: bool = False
    """Print all verdicts in the order of their times."""
    undo: bool = False
    """Take back the last verdict of this person."""

    def __post_init__(self) -> None:
        given = [bool(self.keep or self.drop or self.unsure or self.clear), self.list, self.undo]
        if sum(given) != 1:
            raise UserError("give items after --keep, --drop, --unsure or --clear, or --list, or --undo")
        items = [item for items in self.items.values() for item in items]
        for item in items:
            if not re.fullmatch(r"\d+(/v\d+)?", item):
                raise UserError(f"{item!r} is no item; write 17 for an identity and 42/v063 for one of its views")
        if double := next((item for item in items if items.count(item) > 1), None):
            raise UserError(f"{double} is given twice")

    @property
    def items(self) -> dict[str, tuple[str, ...]]:
        """The items by verdict."""
        return {verdict: getattr(self, verdict) for verdict in ("keep", "drop", "unsure", "clear")}


@dataclass(frozen=True)
class ReviewConfig:
    """Open the curator's page: move limits and see what they drop, look at heads, and record verdicts.

    The page is served on this machine only, at an address with a token, until Ctrl-C.
    """

    out: Positional[str]
    """Folder or address of the dataset."""
    who: str = ""
    """Name that verdicts are recorded under; by default the name of the user on this machine."""
    port: int = 8471
    """Port of the server; 0 takes a free one. Verdicts that were not sent yet belong to the address of the page."""
    open: bool = True
    """Open the page in a browser."""
    export: str = ""
    """Path of an HTML file to write instead: the same page to look at, with its scores and pictures, without a server."""

    def __post_init__(self) -> None:
        check_ranges(self, port=(0, 65535))
