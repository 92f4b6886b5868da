"""People of a calibrated stage as held-out people: found, placed, turned upright and framed as datasets are."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from faces.alignment import over_white
from faces.bisenet import BiSeNet, load_bisenet
from faces.matte import parsed_alpha, uniform_alpha
from geometry.cameras import Cameras, azimuth_elevation
from infer.config import StageConfig
from infer.evaluation.held_out import HeldOut
from infer.evaluation.importers.head_frame import HeadFrame, head_frame, straightened
from infer.evaluation.importers.shots import Shot, Stage
from infer.metrics.likeness import FaceEmbedder
from manifests.errors import UserError
from weights.files import existing, sha256

PARSED = 512
"""Pixels of a side at which a face parser looks."""


class StagePeople:
    """The people of a stage."""

    def __init__(self, stage: Stage, layout: str, config: StageConfig, detector: Any, resolution: int):
        """Wrap a stage; raises FileNotFoundError or ValueError if the parser's weights are not there."""
        self.stage, self.config, self.resolution = stage, config, resolution
        self.layout, self.detector = layout, detector
        self.names = list(stage.names)
        self.parser = load_bisenet(config.matte.parser, "cpu") if config.matte.parser else None

    @property
    def lineage(self) -> dict[str, Any]:
        """Which people, and which of their moments."""
        parser = self.config.matte.parser
        return {
            "layout": self.layout,
            "people": hashlib.sha256(" ".join(self.names).encode()).hexdigest(),
            "sequence": self.config.sequence,
            "frame": self.config.frame,
            "parser": sha256(existing(parser, "stage.matte.parser")) if parser else None,
            "uniform": self.config.matte.uniform,
        }

    def person(self, name: str) -> "StagePerson":
        """Find a person's face and its place.

        Raises:
            FileNotFoundError, ValueError: a picture or a camera does not read, or the head cannot be placed.
        """
        shots = self.stage.shots(name)
        if len(shots) < 2:
            raise UserError(f"{name} of {self.layout} has {len(shots)} views that can be used, two are needed")
        K, w2c = (np.stack([getattr(shot, part) for shot in shots]) for part in ("K", "w2c"))
        points, found = np.zeros((len(shots), 5, 2)), np.zeros(len(shots), bool)
        for i, shot in enumerate(shots):
            if (face := _largest(self.detector, shot)) is not None:
                points[i], found[i] = face, True
        try:
            frame = head_frame(points, found, K, w2c)
        except ValueError as error:
            raise UserError(f"{name} of {self.layout}: {error}") from error
        return StagePerson(name, shots, frame, frame.c2w(w2c), self)


@dataclass(frozen=True, eq=False)
class StagePerson:
    """One person at one moment."""

    name: str
    shots: list[Shot]
    frame: HeadFrame
    c2w: np.ndarray
    people: StagePeople

    @cached_property
    def _directions(self) -> tuple[Tensor, Tensor]:
        return azimuth_elevation(torch.from_numpy(self.c2w).float())

    @property
    def azimuth(self) -> Float32[np.ndarray, " v"]:
        return self._directions[0].numpy()

    @property
    def elevation(self) -> Float32[np.ndarray, " v"]:
        return self._directions[1].numpy()

    def read(self, places: Int64[np.ndarray, " k"]) -> HeldOut:
        """Some views, straightened and cut; raises FileNotFoundError or ValueError if a picture does not read."""
        views = [self._view(int(place)) for place in places]
        known = all(alpha is not None for _, alpha, _ in views)
        alphas = [torch.from_numpy(alpha).float() / 255 for _, alpha, _ in views if alpha is not None]
        cameras = [camera for _, _, camera in views]
        rgb = np.stack([picture for picture, _, _ in views])
        return HeldOut(
            self.name,
            tuple(self.shots[int(place)].name for place in places),
            torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 127.5 - 1,
            None,
            torch.stack(alphas) if known else None,
            Cameras(torch.cat([c.c2w for c in cameras]), torch.cat([c.K for c in cameras])),
            self.azimuth[places],
            self.elevation[places],
            self.frame.points.astype(np.float32),
            None,
        )

    def _view(self, place: int) -> tuple[np.ndarray, np.ndarray | None, Cameras]:
        """One view, with what of it is the person if that is known or asked for."""
        shot, resolution, matte = self.shots[place], self.people.resolution, self.people.config.matte
        rgb, alpha = shot.seen()
        asked = alpha is None and (self.people.parser is not None or matte.uniform)
        side = max(resolution, PARSED) if asked else resolution
        picture, camera = straightened(rgb, shot.K, self.c2w[place], side)
        if alpha is not None:
            return picture, straightened(alpha, shot.K, self.c2w[place], side, beyond=0)[0], camera
        if not asked:
            return picture, None, camera
        try:
            alpha = parsed(self.people.parser, picture)
        except ValueError as error:
            raise UserError(f"{self.name}, view {shot.name}: {error}") from error
        size = (resolution, resolution)
        small = np.asarray(cv2.resize(over_white(picture, alpha), size, interpolation=cv2.INTER_AREA))
        return small, np.asarray(cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)), camera


def parsed(parser: BiSeNet | None, picture: np.ndarray) -> np.ndarray:
    """What of a picture is the person, by the parser, or by a background of one colour without one."""
    return uniform_alpha(picture) if parser is None else parsed_alpha(parser, picture)


def _largest(detector: Any, shot: Shot) -> np.ndarray | None:
    """Points of the largest face of a picture."""
    boxes, points = detector.detect(
        np.ascontiguousarray(shot.seen().rgb[..., ::-1]), det_thresh=FaceEmbedder.min_detection
    )
    if not len(boxes):
        return None
    return points[((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argmax()]
