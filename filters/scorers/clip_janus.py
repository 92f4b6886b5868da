"""Cosines of back views with prompts for a face and for the back of a head, by CLIP through open_clip.

Source: Gen3D-Face, section 3.2 (zero-shot classification by "back of human head" and "human front face").
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from filters.config import ClipConfig
from filters.scorer import Columns, ScorerContext, Subject
from geometry.directions import turned
from jobs.devices import require_device
from manifests.errors import MissingFile, UserError
from manifests.scores import VIEW, Lineage, column
from weights.embedded import CLIP
from weights.files import existing, sha256

FRONT, BACK = "human front face", "back of human head"
"""The prompts of Gen3D-Face."""
BATCH = 64
"""Pictures per call of the network; 64 of 224 px are 39 MB of input."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A loaded CLIP of open_clip; pictures and texts become unit vectors whose inner products are cosines."""

    model: Any
    preprocess: Any
    """open_clip's transform of a PIL picture."""
    tokenize: Any
    sha256: str
    """Hash of the file of the weights."""
    device: str

    def prepare(self, pictures: UInt8[np.ndarray, "v h w 3"]) -> Float[Tensor, "v 3 s s"]:
        """The model's own preprocessing of each picture (sRGB)."""
        return torch.stack([self.preprocess(Image.fromarray(picture)) for picture in pictures])

    @torch.no_grad()
    def pictures(self, prepared: Float[Tensor, "v 3 s s"]) -> Float[Tensor, "v d"]:
        """Unit embeddings of prepared pictures, on the CPU."""
        parts = [self.model.encode_image(part.to(self.device), normalize=True) for part in prepared.split(BATCH)]
        return torch.cat(parts).float().cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit embeddings of prompts, on the CPU."""
        return self.model.encode_text(self.tokenize(list(texts)).to(self.device), normalize=True).float().cpu()


def load_clip(model: str, checkpoint: str = "", device: str = "cpu") -> Clip:
    """Load a CLIP through open_clip from local files only.

    Raises:
        MissingFile: there is no such folder or checkpoint.
        UserError: no such device or architecture, weights that are damaged or of another one, or a model without a text tower.
    """
    import open_clip

    require_device(device)
    weights = _weights(model, checkpoint, open_clip)
    try:
        # The model of a folder loads with it; that of a name is given its file.
        net, _, preprocess = open_clip.create_model_and_transforms(model, pretrained=checkpoint or None, device=device)
        tokenize = open_clip.get_tokenizer(model)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError) as error:
        raise UserError(f"{weights} does not load as {model}: {_first_line(error)}") from error
    if not callable(getattr(net, "encode_text", None)):
        raise UserError(f"{weights} has no text tower; the Janus scorer needs one")
    return Clip(net.eval().requires_grad_(False), preprocess, tokenize, sha256(weights), device)


def _weights(model: str, checkpoint: str, open_clip: Any) -> Path:
    """The file that open_clip will load; raises an error where it would download weights or start from random ones."""
    if model.startswith("local-dir:"):
        if checkpoint:
            raise UserError(f"{model} holds its own weights; leave --clip.checkpoint out, or name an architecture")
        folder = Path(model.removeprefix("local-dir:"))
        config = existing(folder / "open_clip_config.json", "clip")
        try:
            towers = json.loads(config.read_text())["model_cfg"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{config} is not a config of open_clip: it has no model_cfg") from None
        _check_towers(str(config), towers, ("hf_model_name",))
        return existing(folder / "open_clip_model.safetensors", "clip")
    if model not in open_clip.list_models():
        count = len(open_clip.list_models())
        raise UserError(f"open_clip knows no model {model!r}; it knows ViT-L-14-quickgelu, ViT-B-32 and {count} in all")
    _check_towers(model, open_clip.get_model_config(model), ("hf_model_name", "hf_tokenizer_name"))
    if not checkpoint:
        raise MissingFile(f"clip {model} needs --clip.checkpoint, a local file; weights are never downloaded")
    file = existing(checkpoint, f"clip {model}")
    if _is_torchscript(file):
        raise UserError(
            f"{file} is a TorchScript archive, as OpenAI publishes CLIP; only files of tensors are read: convert it to "
            ".safetensors as docs/filters.md shows"
        )
    return file


def _is_torchscript(file: Path) -> bool:
    """Whether a file is a program of torch.jit, which holds code; a checkpoint of torch.save holds none."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _check_towers(where: str, towers: dict[str, Any], online: Sequence[str]) -> None:
    if missing := [tower for tower in ("vision_cfg", "text_cfg") if tower not in towers]:
        raise UserError(f"{where} has no {missing[0]}; the Janus scorer needs a picture tower and a text tower")
    if fetched := [name for name in online if towers["text_cfg"].get(name)]:
        raise UserError(
            f"{where} would fetch {towers['text_cfg'][fetched[0]]} from the net; save it as local-dir:FOLDER"
        )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:200]}" if lines else type(error).__name__


class ClipScorer:
    """Cosines of every view that is turned away with "human front face" and "back of human head"."""

    members = ("rgb",)

    def __init__(self, config: ClipConfig, device: str, beyond_embedded: bool = False):
        """Load the model; `beyond_embedded` records that the embedded one was not trained on heads of this source."""
        self.table, self.min_turn = config.table, config.min_turn
        self.clip = load_clip(config.model or f"local-dir:{CLIP}", config.checkpoint, device)
        prompts = {"front": [FRONT], "back": [BACK]}
        if config.templates:
            prompts |= {f"{k}_templates": [t.format(v[0]) for t in config.templates] for k, v in prompts.items()}
        self.columns = tuple(
            column(name, VIEW, f"cosine of the picture with {' / '.join(texts)}") for name, texts in prompts.items()
        )
        means = torch.stack([self.clip.texts(texts).mean(0) for texts in prompts.values()])
        self.classes = torch.nn.functional.normalize(means, dim=-1)
        settings = {k: v for k, v in asdict(config).items() if k in ("templates", "min_turn")}
        settings["model"] = config.model.split(":")[0] or "embedded"
        settings["templates"] = list(config.templates)
        settings |= {"allow_embedded": True} if beyond_embedded else {}
        self.lineage = Lineage("clip_janus", 1, self.clip.sha256, settings)

    def wants(self, azimuth: Float[np.ndarray, " v"], elevation: Float[np.ndarray, " v"]) -> Bool[np.ndarray, " v"]:
        return turned(azimuth) >= self.min_turn

    def prepare(self, subject: Subject) -> Float[Tensor, "v 3 s s"] | None:
        return self.clip.prepare(subject.member("rgb")) if len(subject.view) else None

    def score(self, prepared: Float[Tensor, "v 3 s s"] | None) -> Columns:
        if prepared is None:
            return {f.name: np.empty(0, np.float32) for f in self.columns}
        cosines = (self.clip.pictures(prepared) @ self.classes.T).numpy()
        return {f.name: cosines[:, i] for i, f in enumerate(self.columns)}


def open_scorer(context: ScorerContext) -> ClipScorer:
    """The scorer with the CLIP of the options, or the embedded one."""
    config = context.options.clip
    return ClipScorer(config, context.device, context.beyond_embedded("clip.model", config.model))
