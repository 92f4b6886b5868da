"""Trains the embedded CLIP on procedural heads with captions: python -m tools.train_clip DATASET.

The model is open_clip's own, small, saved in open_clip's own format. Each caption is true or false of each
picture, so all true pairs of a batch are known: the loss is the symmetric cross-entropy of Radford et al. (CLIP, 2021) with
a target for each of them. The temperature is CLIP's final one, so cosines have the same scale as those of real models.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Bool, Float, Int64, UInt8
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor
from tyro.conf import Positional

from filters.scorers.clip_janus import BACK, FRONT, load_clip
from geometry.directions import turned
from manifests.dataset import Dataset
from tools.examples import HELD_OUT, Example, examples
from tools.train_arcface import area_under_curve
from weights.embedded import EMBEDDED
from weights.files import sha256

SIZE = 64
MEAN, STD = 0.7, 0.3
SCALE = (1 / 0.07, 100.0)
"""First and last scale of the cosines (CLIP, section 2.5); the last is reached halfway through the training."""

MODEL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIZE, "layers": [1, 2, 2, 1], "width": 16, "patch_size": None},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bilinear", "resize_mode": "shortest"}


@dataclass(frozen=True)
class TrainClipConfig:
    """Train the embedded CLIP; about a quarter of an hour on one core."""

    dataset: Positional[str]
    """Procedural heads view from all around, some with Janus faces."""
    out: Path = EMBEDDED / "clip"
    epochs: int = 12
    batch: int = 128
    lr: float = 2e-3
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class ViewTruth:
    """Ground truth of one view."""

    turn: float
    """Absolute azimuth, in degrees from the front."""
    shows_face: bool
    facts: dict[str, Any]
    """Facts that the source records of the head, such as its hair and glasses."""


CAPTIONS: dict[str, Callable[[ViewTruth], bool]] = {
    FRONT: lambda view: view.shows_face,
    BACK: lambda view: view.turn >= 110 and not view.shows_face,
    "side of human head": lambda view: 60 <= view.turn < 110,
    "a face with glasses": lambda view: view.shows_face and view.facts["glasses"] not in (None, "none", False),
    "a face with a beard": lambda view: view.shows_face and view.facts["beard"] not in (None, "none", False),
    "a head with a hat": lambda view: view.facts["hat"] not in (None, "none", False),
}
"""Captions, each with its condition; captions of hair colours are added for the colours of the dataset."""


def view_truths(example: Example) -> list[ViewTruth | None]:
    """The truth of each view of a head; None for the sides of a Janus head, where one face passes into the other."""
    turn, is_janus = turned(example.subject.azimuth), "janus" in example.defects
    views = []
    for degrees in turn.tolist():
        ambiguous = 60 <= degrees < 110 and is_janus
        shows_face = degrees < 60 or (is_janus and degrees >= 110)
        views.append(None if ambiguous else ViewTruth(degrees, shows_face, example.facts))
    return views


def read_pictures_and_truth(
    dataset: Dataset,
) -> tuple[UInt8[np.ndarray, "n s s 3"], list[ViewTruth], Int64[np.ndarray, " n"]]:
    """RGB pictures (0 to 255) at the input size of the model, their truths, and their identities."""
    pictures, truth, people = [], [], []
    for example in examples(dataset):
        for picture, view in zip(example.subject.pictures["rgb"], view_truths(example), strict=True):
            if view is not None:
                pictures.append(cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA))
                truth.append(view)
                people.append(example.identity)
    return np.stack(pictures), truth, np.array(people)


def captions_of(truth: list[ViewTruth]) -> tuple[list[str], Bool[np.ndarray, "n k"]]:
    """The captions, and which of them are true of which picture."""
    colours = sorted({view.facts["hair_colour"] for view in truth if view.facts["hair_style"] != "bald"})
    captions = dict(CAPTIONS)
    for colour in colours:
        captions[f"a head with {colour} hair"] = lambda view, colour=colour: (
            view.facts["hair_colour"] == colour and view.facts["hair_style"] != "bald"
        )
    return list(captions), np.array([[is_true(view) for is_true in captions.values()] for view in truth])


def augment(pictures: UInt8[Tensor, "n s s 3"], generator: torch.Generator) -> Float[Tensor, "n 3 s s"]:
    """Mirror, shift, scale and relight pictures (0 to 255), and normalise them as inputs of the model."""
    n = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    x = pictures.permute(0, 3, 1, 2).float() / 255
    scale, zero, mirror = uniform(0.85, 1.1), torch.zeros(n), 1 - 2 * (uniform(0.0, 1.0) < 0.5).float()
    rows = torch.stack([torch.stack([scale * mirror, zero, uniform(-0.1, 0.1)], -1),
                        torch.stack([zero, scale, uniform(-0.1, 0.1)], -1)], 1)  # fmt: skip
    grid = F.affine_grid(rows, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    x = x * uniform(0.75, 1.2, 3, 1, 1) + uniform(-0.1, 0.1, 1, 1, 1)
    return (x.clamp(0, 1) - MEAN) / STD


def clip_loss(
    pictures: Float[Tensor, "n d"], texts: Float[Tensor, "k d"], true: Bool[Tensor, "n k"], scale: float
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of scaled cosines of unit vectors; the targets are uniform over all true pairs."""
    logits, target = scale * pictures @ texts.T, true.float()
    by_picture = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    present = true.any(0)
    by_text = F.cross_entropy(logits.T[present], (target / target.sum(0).clamp(min=1)).T[present])
    return (by_picture + by_text) / 2


def train(
    config: TrainClipConfig, pictures: UInt8[np.ndarray, "n s s 3"], captions: list[str], true: np.ndarray
) -> Any:
    """Train a new model on pictures (0 to 255) and the captions that are true of them."""
    import open_clip

    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    model = open_clip.CLIP(**MODEL)
    tokens = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])(captions)
    pixels, truth = torch.from_numpy(pictures), torch.from_numpy(true)
    per_epoch = len(pixels) // config.batch
    optimiser = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.lr, total_steps=per_epoch * config.epochs, pct_start=0.1
    )
    for epoch in range(config.epochs):
        losses, order = [], torch.randperm(len(pixels), generator=generator)
        for step in track(range(per_epoch), f"clip, epoch {epoch + 1} of {config.epochs}"):
            progress = min(1.0, 2 * (epoch * per_epoch + step) / (per_epoch * config.epochs))
            scale = SCALE[0] ** (1 - progress) * SCALE[1] ** progress
            pick = order[step * config.batch :][: config.batch]
            embedded = model.encode_image(augment(pixels[pick], generator), normalize=True)
            loss = clip_loss(embedded, model.encode_text(tokens, normalize=True), truth[pick], scale)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}", flush=True)
    with torch.no_grad():
        model.logit_scale.fill_(float(np.log(SCALE[1])))
    return model.eval()


def save(model: Any, folder: Path) -> None:
    """Write the config of open_clip and the weights, in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    halves = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(halves, folder / "open_clip_model.safetensors")


def figures_of(folder: Path, pictures: UInt8[np.ndarray, "n s s 3"], truth: list[ViewTruth]) -> dict[str, float]:
    """Figures of a saved model on held-out pictures, computed as the scorer does."""
    clip = load_clip(f"local-dir:{folder}")
    sides = [FRONT, BACK, "side of human head"]
    cosines = (clip.pictures(clip.prepare(pictures)) @ clip.texts(sides).T).numpy()
    known = np.array([[CAPTIONS[side](view) for side in sides] for view in truth])
    behind = np.array([view.turn >= 120 for view in truth])
    janus = np.array([view.shows_face for view in truth])
    return {
        "front_side_back_accuracy": float((cosines.argmax(1) == known.argmax(1)).mean()),
        "janus_view_auc": area_under_curve((cosines[:, 0] - cosines[:, 1])[behind], janus[behind]),
    }


def main() -> None:
    config = tyro.cli(TrainClipConfig, description=__doc__)
    torch.set_num_threads(config.threads)
    started = time.monotonic()
    dataset = Dataset(config.dataset)
    pictures, truth, people = read_pictures_and_truth(dataset)
    captions, true = captions_of(truth)
    held_out = people % HELD_OUT == 0
    print(f"{len(pictures)} pictures of {len(np.unique(people))} heads, {len(captions)} captions", flush=True)
    save(train(config, pictures[~held_out], captions, true[~held_out]), config.out)
    weights = config.out / "open_clip_model.safetensors"
    print(json.dumps({
        "sha256": sha256(weights), "bytes": weights.stat().st_size, "dataset": dataset.plan.fingerprint,
        "learned": len(np.unique(people[~held_out])), "held_out": len(np.unique(people[held_out])),
        **figures_of(config.out, pictures[held_out], [t for t, h in zip(truth, held_out, strict=True) if h]),
        "seconds": round(time.monotonic() - started),
        "config": {k: v for k, v in asdict(config).items() if k not in ("dataset", "out")},
        "captions": captions,
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
