"""Where the head is in views over white: by their colours, and by their normals where there are any."""

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from infer.turn import Turn
from manifests.errors import UserError

LEAST, MOST = 0.04, 0.25
"""Between which distances from white, of a full scale of 1, the level lies that tells a head from its background."""
NORMAL = 0.5
"""Length below which a decoded normal is grey, so background."""
SMALLEST = 0.02
"""Share of a view that a head fills."""


def silhouettes(turn: Turn) -> Bool[Tensor, "v h w"]:
    """Masks of the head: one region per view, without the holes that white eyes or shirts would leave.

    Raises:
        ValueError: a view shows next to nothing.
    """
    masks = np.stack([_silhouette(turn, view) for view in range(len(turn))])
    shares = masks.mean((1, 2))
    if shares[smallest := shares.argmin()] < SMALLEST:
        raise UserError(
            f"view {smallest} is white but for {shares[smallest]:.1%}: it shows no head to take a shape from"
        )
    return torch.from_numpy(masks)


def _silhouette(turn: Turn, view: int) -> Bool[np.ndarray, "h w"]:
    mask = _coloured(turn.rgb[view].cpu().numpy())
    if turn.normal is not None:
        mask |= turn.normal[view].cpu().norm(dim=0).numpy() > NORMAL
    _, parts, figures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if len(figures) == 1:
        return mask
    head = parts == 1 + figures[1:, cv2.CC_STAT_AREA].argmax()
    _, around = cv2.connectedComponents((~head).astype(np.uint8), connectivity=8)
    # Not the lower border: what is white there is more likely a shirt.
    border = np.concatenate([around[0], around[:, 0], around[:, -1]])
    return head | ~np.isin(around, border[border > 0])


def _coloured(rgb: Float32[np.ndarray, "3 h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels farther from white than the noise of a background, which the upper border shows."""
    distance = (1 - rgb.min(0)) / 2
    upper = slice(None, len(distance) // 2)
    border = np.concatenate([distance[0], distance[upper, 0], distance[upper, -1]])
    return distance > np.clip(3 * np.median(border), LEAST, MOST)
