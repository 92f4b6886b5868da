"""Scoring and decoding rates, and what pictures and latents cost a training step."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch

from datagen.config import ImageConfig
from datagen.identity import encode_rgb
from faces.models import load_arcface
from gpu_parts.common import Budget, Table, seconds
from gpu_parts.views import model_of
from manifests.pictures import encode_picture
from weights.embedded import EMBEDDED


def scoring(budget: Budget) -> Iterator[Table]:
    """CLIP and ArcFace, JPEG and PNG, and the autoencoder of a training step."""
    device = budget.device
    table = Table("Scoring", ("model", "on", "batch", "pictures/s"))
    batch = 2 if budget.toy else 64
    clip = clip_of(budget)
    pictures = torch.randn(batch, 3, *clip.visual.image_size, device=device)
    for half in (False, True):
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
            taken = seconds(lambda: clip.encode_image(pictures), device, 1 if budget.toy else 5, warmup=1)
        size = "toy" if budget.toy else "ViT-L-14"
        yield table.add(f"CLIP {size}, {'bf16' if half else 'fp32'}", device, batch, batch / taken)
    arcface = load_arcface(str(EMBEDDED / "arcface.onnx"), "cpu")
    crops = np.random.default_rng(0).integers(0, 255, (batch, 112, 112, 3), np.uint8)
    yield table.add("embedded ArcFace", "cpu", batch, batch / seconds(lambda: arcface.embed(crops), "cpu", 2, warmup=1))

    cores = len(os.sched_getaffinity(0))
    decode = Table("Decoding pictures of 512 px", ("format", "kB", "1 core, pictures/s", f"{cores} cores, pictures/s"))
    side = 64 if budget.toy else 512
    picture = photo_like(side)
    for name, encoded in (("jpg, quality 95", encode_rgb(picture, ImageConfig())), ("png", encode_picture(picture))):
        one = rate(encoded, 1, 0.1 if budget.toy else 1.0)
        yield decode.add(name, len(encoded) / 1000, one, rate(encoded, cores, 0.1 if budget.toy else 1.0))

    model = model_of(budget)
    step = Table("What a scene of 8 views and normals costs before a training step", ("source", "ms on the device"))
    views = torch.rand(1, 8, 3, side, side, device=device) * 2 - 1
    encoding = seconds(lambda: model.encode(views, views), device, 2, warmup=1)
    yield step.add("pictures, encoded by the KL autoencoder in fp32", 1000 * encoding)
    cached = torch.randn(1, 8, 16, side // 8, side // 8).half()
    if device == "cuda":
        cached = cached.pin_memory()
    copying = seconds(lambda: cached.to(device, non_blocking=True).float(), device, 20, warmup=2)
    yield step.add("cached latents, copied from pinned memory", 1000 * copying)


def clip_of(budget: Budget) -> torch.nn.Module:
    """open_clip's ViT-L-14, or a toy, with random weights."""
    import open_clip

    shape = open_clip.get_model_config("ViT-L-14")
    if budget.toy:
        shape["vision_cfg"] |= {"layers": 1, "width": 64, "head_width": 16, "patch_size": 32, "image_size": 64}
        shape["text_cfg"] |= {"layers": 1, "width": 64, "heads": 2}
    return open_clip.CLIP(**shape).to(budget.device).eval()


def photo_like(side: int) -> np.ndarray:
    """A smooth picture with some grain on a plain background, which compresses about as a rendered head does."""
    rng = np.random.default_rng(0)
    small = rng.integers(40, 220, (side // 16, side // 16, 3)).astype(np.uint8)
    picture = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC).astype(float) + rng.normal(
        0, 3, (side, side, 3)
    )
    row, column = np.mgrid[:side, :side] - side / 2
    picture[row**2 + column**2 > (0.38 * side) ** 2] = 255
    return picture.clip(0, 255).astype(np.uint8)


def rate(encoded: bytes, threads: int, duration: float) -> float:
    """Pictures per second that OpenCV decodes on so many threads."""
    cv2.setNumThreads(1)
    data, end = np.frombuffer(encoded, np.uint8), time.perf_counter() + duration

    def work() -> int:
        done = 0
        while time.perf_counter() < end:
            cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        tasks: list[Callable[[], int]] = [work] * threads
        return sum(pool.map(lambda task: task(), tasks)) / duration
