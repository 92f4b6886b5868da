"""From photos to the pictures that inversion fits, with the distances that it can be given."""

import numpy as np
import torch
from jaxtyping import UInt8

from datagen.inversion.config import InvertConfig
from datagen.inversion.invert import Inversion, Likeness, invert
from datagen.inversion.objective import Perceptual, Pictures
from faces.models import ArcFace
from geometry.cameras import Cameras, intrinsics, orbit
from infer.config import PortraitConfig
from infer.metrics.likeness import FaceEmbedder, identity_similarity
from infer.metrics.metric_weights import VGG16, read_weights
from infer.metrics.perceptual import build_lpips
from infer.photo import read_photo
from infer.portrait import Portrait, load_preprocessor
from jobs.progress import step


def invert_photos(config: InvertConfig, portrait: PortraitConfig, lpips: str = "") -> Inversion:
    """Fit an identity to photos, which are prepared as `spinset views` does; the same call resumes.

    Args:
        lpips: folder of the VGG-16 of LPIPS; without one there is no perceptual distance.

    Raises:
        MissingFile, UserError: a file is missing, or a photo, the weights or the folder cannot be used.
    """
    photos = [read_photo(file) for file in config.photos]
    perceptual, settings = None, {}
    if lpips:
        perceptual, settings = _lpips(lpips, config.device), {"lpips": VGG16.sha256}
    with step("reading the photos"):
        preprocess = load_preprocessor(portrait, config.device)
        found = [preprocess(photo) for photo in photos]
    pictures = Pictures(
        torch.stack([one.rgb for one in found]),
        torch.stack([one.alpha for one in found])[:, None],
        cameras_of(found, config),
    )
    likeness = None if preprocess.faces.arcface is None else _likeness(preprocess.faces.arcface)
    return invert(config, pictures, perceptual, likeness, settings)


def cameras_of(found: list[Portrait], config: InvertConfig) -> Cameras:
    """The cameras of photos: from the directions that are given, or as they were measured."""
    c2w = torch.stack([one.c2w for one in found])
    if config.azimuths:
        elevations = config.elevations or (0.0,) * len(config.azimuths)
        c2w = orbit(np.array(config.azimuths), np.array(elevations)).c2w
    return Cameras(c2w, intrinsics(views=len(c2w)))


def _lpips(folder: str, device: str) -> Perceptual:
    """LPIPS on VGG-16 for pictures in [-1, 1], with gradients."""
    compare = build_lpips("vgg", read_weights(VGG16, folder), device).compare
    return lambda a, b: compare((a + 1) / 2, (b + 1) / 2).reshape(-1)


def _likeness(arcface: ArcFace) -> Likeness:
    """Cosines of the faces of views, which are located by the cameras."""
    embed = FaceEmbedder(arcface)

    def likeness(
        first: UInt8[np.ndarray, "v h w 3"], second: UInt8[np.ndarray, "v h w 3"], cameras: Cameras
    ) -> list[float | None]:
        cosines = identity_similarity(embed(first, cameras), embed(second, cameras))
        return [None if np.isnan(cosine) else float(cosine) for cosine in cosines]

    return likeness
