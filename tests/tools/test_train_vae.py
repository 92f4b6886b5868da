"""The embedded autoencoder: how it begins, and what ships."""

import numpy as np
import torch
import torch.nn.functional as F
from turntable import turntable

from tools.train_vae import PATCH, build, difference
from train.networks.model import load_vae
from weights.embedded import HEADS64

SIDES = tuple(45.0 * i for i in range(8))


def heads() -> torch.Tensor:
    return turntable(52, SIDES, 64)[0] * 2 - 1


def decibels(seen: torch.Tensor, true: torch.Tensor) -> float:
    return float(-10 * ((seen.clamp(-1, 1) - true).square().mean() / 4).log10())


def principal(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Pictures from the first principal components of their patches, by numpy."""
    patches = F.pixel_unshuffle(images, PATCH).permute(0, 2, 3, 1)
    flat = patches.reshape(-1, patches.shape[-1]).numpy().astype(np.float64)
    mean = flat.mean(0)
    basis = np.linalg.svd(flat - mean, full_matrices=False)[2][:channels]
    back = torch.from_numpy((flat - mean) @ basis.T @ basis + mean).float().reshape(patches.shape)
    return F.pixel_shuffle(back.permute(0, 3, 1, 2), PATCH)


def test_it_begins_as_the_best_linear_code_of_patches():
    images = heads()
    model = build(12, images, 0).eval()
    with torch.no_grad():
        codes = model.encode(F.pixel_unshuffle(images, PATCH)).latent_dist
        seen = F.pixel_shuffle(model.decode(codes.mean).sample, PATCH)
    best = decibels(principal(images, 12), images)
    assert best > 28
    assert best - 1.5 < decibels(seen, images) <= best + 0.1
    assert float(codes.std.max()) < 0.1


def test_what_ships_beats_that_on_a_head_it_never_saw():
    images = heads()
    vae = load_vae(str(HEADS64 / "vae"))
    with torch.no_grad():
        seen = vae.decode(vae.posterior(images)[:, 0])
    assert (vae.factor, vae.channels) == (4, 12)
    assert decibels(seen, images) > 28


def test_the_difference_counts_what_halving_leaves():
    images = torch.zeros(1, 3, 16, 16)
    checkers = torch.tensor([1.0, -1.0]).repeat(8)[None, None, None].expand(1, 3, 16, 16)
    assert float(difference(images + 0.5, images)) == 4 * 0.5
    assert float(difference(checkers, images)) == 1
