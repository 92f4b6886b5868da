"""Trains the embedded face recogniser on procedural heads: python -m tools.train_arcface DATASET.

Additive angular margin: Deng et al., ArcFace (CVPR 2019), equation 3. The network is a small residual one; what is
exported has the interface of insightface: aligned crops of 112 pixels, RGB, (x - 127.5) / 127.5, one embedding each.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Bool, Float, Int64, UInt8
from rich.progress import track
from torch import Tensor, nn
from tyro.conf import Positional

from faces.landmarks import SIZE, crops, face_points, project
from faces.models import load_arcface
from filters.config import ArcFaceConfig
from geometry.directions import turned
from manifests.dataset import Dataset
from tools.examples import HELD_OUT, examples
from weights.embedded import EMBEDDED
from weights.files import sha256


@dataclass(frozen=True)
class TrainArcFaceConfig:
    """Train the embedded recogniser; about half an hour on one core."""

    dataset: Positional[str]
    """Procedural heads with landmarks, without identity drift."""
    out: Path = EMBEDDED / "arcface.onnx"
    epochs: int = 24
    batch: int = 128
    lr: float = 2e-3
    scale: float = 32.0
    margin: float = 0.3
    dimensions: int = 512
    seed: int = 0
    threads: int = 1


class Residual(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.PReLU(out),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.activation = nn.PReLU(out)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        return self.activation(self.body(x) + self.shortcut(x))


class Recogniser(nn.Sequential):
    """Maps faces in [-1, 1] to embeddings; the last layer is linear over all positions, as in ArcFace."""

    def __init__(self, dimensions: int):
        widths = (24, 40, 64, 96, 128)
        super().__init__(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0]),
            *(Residual(a, b, 2) for a, b in pairwise(widths)),
            nn.Conv2d(widths[-1], 24, 1, bias=False), nn.BatchNorm2d(24), nn.Flatten(),
            nn.Linear(24 * 4 * 4, dimensions, bias=False), nn.BatchNorm1d(dimensions),
        )  # fmt: skip


def read_faces(dataset: Dataset) -> tuple[UInt8[np.ndarray, "n 112 112 3"], Int64[np.ndarray, " n"]]:
    """Aligned RGB crops (0 to 255) of the views that the scorer uses by default, and their identities."""
    cone = ArcFaceConfig()
    faces, people = [], []
    for example in examples(dataset):
        if "identity_drift" in example.defects:
            continue
        own = example.subject
        frontal = (turned(own.azimuth) <= cone.max_turn) & (np.abs(own.elevation) <= cone.max_elevation)
        pictures = own.member("rgb")
        points = project(face_points(own.row["facts"]), own.cameras, pictures.shape[1])
        if frontal.any():
            faces.append(crops(pictures[frontal], points[frontal]))
            people.append(np.full(int(frontal.sum()), example.identity))
    return np.concatenate(faces), np.concatenate(people)


def augment(faces: UInt8[Tensor, "n 112 112 3"], generator: torch.Generator) -> Float[Tensor, "n 3 112 112"]:
    """Mirror, shift, scale, rotate, blur and relight faces (0 to 255); the result is in [-1, 1]."""
    n = len(faces)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    x = faces.permute(0, 3, 1, 2).float() / 127.5 - 1
    angle, scale = uniform(-0.1, 0.1), uniform(0.93, 1.07)
    mirror = 1 - 2 * (uniform(0.0, 1.0) < 0.5).float()
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([torch.stack([cos * mirror, -sin, uniform(-0.05, 0.05)], -1),
                        torch.stack([sin * mirror, cos, uniform(-0.05, 0.05)], -1)], 1)  # fmt: skip
    x = F.grid_sample(x, F.affine_grid(rows, list(x.shape), align_corners=False), align_corners=False)
    if torch.rand((), generator=generator) < 0.5:
        small = int(torch.randint(48, SIZE, (), generator=generator))
        x = F.interpolate(F.interpolate(x, small, mode="area"), SIZE, mode="bilinear")
    light, contrast = uniform(-0.15, 0.15, 3, 1, 1) * 0.3 + uniform(-0.15, 0.15, 1, 1, 1), uniform(0.8, 1.2, 1, 1, 1)
    return (x * contrast + light + 0.02 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def arcface_loss(
    embeddings: Float[Tensor, "n d"],
    centres: Float[Tensor, "k d"],
    people: Int64[Tensor, " n"],
    scale: float,
    margin: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of scaled cosines, the angle to the own class widened by the margin (ArcFace, equation 3)."""
    cosine = (F.normalize(embeddings) @ F.normalize(centres).T).clamp(-1 + 1e-6, 1 - 1e-6)
    own = cosine.gather(1, people[:, None]).acos()
    widened = (own + margin).clamp(max=math.pi).cos()
    return F.cross_entropy(scale * cosine.scatter(1, people[:, None], widened), people)


def train(
    config: TrainArcFaceConfig, faces: UInt8[np.ndarray, "n 112 112 3"], people: Int64[np.ndarray, " n"]
) -> Recogniser:
    """Train a new recogniser on crops (0 to 255) and their identities."""
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    pixels, labels = torch.from_numpy(faces), torch.from_numpy(np.unique(people, return_inverse=True)[1])
    model = Recogniser(config.dimensions).to(memory_format=torch.channels_last)
    centres = nn.Parameter(torch.randn(int(labels.max()) + 1, config.dimensions) * 0.05)
    per_epoch = len(labels) // config.batch
    optimiser = torch.optim.AdamW(
        [{"params": model.parameters(), "weight_decay": 0.05}, {"params": [centres]}], config.lr
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.lr, total_steps=per_epoch * config.epochs, pct_start=0.1
    )
    for epoch in range(config.epochs):
        losses, order = [], torch.randperm(len(labels), generator=generator)
        for step in track(range(per_epoch), f"arcface, epoch {epoch + 1} of {config.epochs}"):
            pick = order[step * config.batch :][: config.batch]
            # The margin grows from nothing: with all of it at once small networks do not start.
            progress = (epoch * per_epoch + step) / (per_epoch * config.epochs)
            margin = config.margin * min(1.0, 3 * progress)
            loss = arcface_loss(model(augment(pixels[pick], generator)), centres, labels[pick], config.scale, margin)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}", flush=True)
    return model.eval()


def export(model: Recogniser, path: Path) -> None:
    """Write the network as ONNX for batches of any size."""
    example = torch.zeros(2, 3, SIZE, SIZE)
    program = torch.onnx.export(
        model.to(memory_format=torch.contiguous_format), (example,), input_names=["input"], output_names=["embedding"],
        dynamic_shapes=({0: torch.export.Dim("n")},), opset_version=18, dynamo=True, verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(str(path), include_initializers=True, external_data=False)


def verification(embeddings: Float[np.ndarray, "n d"], people: Int64[np.ndarray, " n"]) -> dict[str, float]:
    """Verification of all pairs by the cosine of unit embeddings: ROC AUC, and recall at a false-positive rate of 0.1 %."""
    i, j = np.triu_indices(len(people), 1)
    cosine, same = (embeddings @ embeddings.T)[i, j], people[i] == people[j]
    limit = np.quantile(cosine[~same], 0.999)
    return {
        "auc": area_under_curve(cosine, same),
        "recall_at_1e-3": float((cosine[same] > limit).mean()),
        "mean_cosine_same": float(cosine[same].mean()),
        "mean_cosine_different": float(cosine[~same].mean()),
    }


def area_under_curve(score: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """ROC AUC: the probability that a positive scores above a negative, ties counting half (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    ranks, k = rankdata(score), int(positive.sum())
    return float((ranks[positive].sum() - k * (k + 1) / 2) / (k * (len(score) - k)))


def main() -> None:
    config = tyro.cli(TrainArcFaceConfig, description=__doc__)
    torch.set_num_threads(config.threads)
    started = time.monotonic()
    dataset = Dataset(config.dataset)
    faces, people = read_faces(dataset)
    held_out = people % HELD_OUT == 0
    print(
        f"{len(faces)} faces of {len(np.unique(people))} people read in {time.monotonic() - started:.0f} s", flush=True
    )
    export(train(config, faces[~held_out], people[~held_out]), config.out)
    figures = verification(load_arcface(str(config.out)).embed(faces[held_out]), people[held_out])
    print(json.dumps({
        "sha256": sha256(config.out), "bytes": config.out.stat().st_size, "dataset": dataset.plan.fingerprint,
        "learned": len(np.unique(people[~held_out])), "held_out": len(np.unique(people[held_out])), **figures,
        "seconds": round(time.monotonic() - started),
        "config": {k: v for k, v in asdict(config).items() if k not in ("dataset", "out")},
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
