"""From a photo to what a model reads: one head, cut as its training data, over white, with its identity and its camera."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from faces.alignment import SIZE, SMALLEST, cut, cut_over_white, ffhq_frame, in_cut, over_white
from faces.bisenet import load_bisenet
from faces.landmarks import face_points, project
from faces.matte import emptiness, parsed_alpha, uniform_alpha
from faces.models import load_face_models
from faces.pose import refined, refusal
from geometry.cameras import orbit
from geometry.directions import turned
from infer.config import PortraitConfig
from infer.photo import Photo, read_photo, shown
from manifests.errors import UserError

SURE = 45.0
"""Degrees a head may be turned before its identity and its views become guesses."""
AVERTED = 90.0
"""Degrees a view may be turned before it shows no face."""


@dataclass(frozen=True, eq=False)
class Portrait:
    """One head, ready for a model."""

    rgb: Float32[Tensor, "3 512 512"]
    """From -1 to 1, over white."""
    alpha: Float32[Tensor, "512 512"]
    """From 0 to 1."""
    identity: Float32[Tensor, "512"] | None
    """ArcFace's embedding, of unit length,"""
    without_identity: str
    """or why there is none."""
    c2w: Float32[Tensor, "4 4"]
    """The camera that sees the head so: OpenCV axes, camera to world; its focal length is `geometry.cameras.FOCAL`."""
    notes: tuple[str, ...]
    """What the person should know."""


class Studio:
    """Makes portraits; its models are loaded once."""

    def __init__(self, config: PortraitConfig, device: str = "cpu"):
        """Load the models.

        Raises:
            FileNotFoundError: a model is not where it should be; the line says which file to place.
            ValueError: a file is not the model it should be.
        """
        if not config.aligned and not config.face.models:
            raise UserError(
                "a photo needs a face detector: --face.models names the folder of scrfd_10g_bnkps.onnx and 1k3d68.onnx "
                "(or --aligned for a picture that is cut already)"
            )
        self.config = config
        self.faces = load_face_models(config.face, device)
        self.parser = load_bisenet(config.matte.parser, device) if config.matte.parser else None

    def portrait(self, path: str | Path) -> Portrait:
        """The portrait of one picture file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it does not read, shows no head that can be cut, or its background cannot be told.
        """
        photo = read_photo(path)
        try:
            return self._aligned(photo) if self.config.aligned else self._cut(photo)
        except ValueError as error:
            raise UserError(f"{shown(path)}: {error}") from error

    def _cut(self, photo: Photo) -> Portrait:
        # A face is looked for over white, where transparent pixels may hide anything.
        seen = photo.rgb if photo.alpha is None else over_white(photo.rgb, photo.alpha)
        face = self.faces.largest(seen)
        if face is None:
            raise UserError(
                "no face was found; give a photo with the whole head and some room around it, or --aligned for a "
                "picture that is cut already"
            )
        notes = list(photo.notes)
        if face.count > 1:
            notes.append(f"{face.count} faces, the largest was taken")
        frame = ffhq_frame(face.points)
        if frame.side < SMALLEST / 2:  # too small, however it is refined
            raise UserError(_too_small(frame.side))
        pose = self.faces.pose(seen, face, frame)
        if why := refusal(pose):
            raise UserError(why)
        frame = refined(frame, pose)
        if frame.side < SMALLEST:
            raise UserError(_too_small(frame.side))
        yaw = abs(pose.angles[0])
        if yaw > SURE:
            notes.append(f"the head is turned by {yaw:.0f} degrees; identity and views are surest within {SURE:.0f}")
        if photo.alpha is None:
            rgb, alpha = self._without_background(cut(photo.rgb, frame))
        else:
            rgb, alpha = cut_over_white(photo.rgb, photo.alpha, frame)
        return self._finished(rgb, alpha, pose.camera.c2w[0], in_cut(face.points, frame), notes)

    def _aligned(self, photo: Photo) -> Portrait:
        height, width = photo.rgb.shape[:2]
        if height != width:
            raise UserError(f"it is {width} x {height} px; an aligned picture is square")
        how = cv2.INTER_AREA if width > SIZE else cv2.INTER_CUBIC
        resized = np.asarray(cv2.resize(photo.rgb, (SIZE, SIZE), interpolation=how))
        if photo.alpha is None:
            rgb, alpha = self._without_background(resized)
        else:
            white = over_white(photo.rgb, photo.alpha)
            rgb = np.asarray(cv2.resize(white, (SIZE, SIZE), interpolation=how))
            alpha = np.asarray(cv2.resize(photo.alpha, (SIZE, SIZE), interpolation=how))
        notes = list(photo.notes) + ([f"{width} px were enlarged to {SIZE}"] if width < SIZE else [])
        cameras = orbit(np.array([self.config.azimuth]), np.array([self.config.elevation]))
        points, why = project(face_points({"facts": None}), cameras, SIZE)[0], ""
        if (turn := float(turned(np.array([self.config.azimuth]))[0])) > AVERTED:
            points, why = None, f"the head is turned away by {turn:.0f} degrees"
        elif self.faces.detector is not None:
            face = self.faces.largest(rgb)
            points, why = (face.points, "") if face else (None, "the detector sees no face in it")
        return self._finished(rgb, alpha, cameras.c2w[0], points, notes, why)

    def _without_background(
        self, rgb: UInt8[np.ndarray, "512 512 3"]
    ) -> tuple[UInt8[np.ndarray, "512 512 3"], UInt8[np.ndarray, "512 512"]]:
        if self.parser is not None:
            alpha = parsed_alpha(self.parser, rgb)
        elif self.config.matte.uniform:
            alpha = uniform_alpha(rgb)
        else:
            raise UserError(
                "it has no transparency and its background is not told: --matte.parser names the face-parsing weights "
                "79999_iter.pth, --matte.uniform takes a background of one colour"
            )
        return over_white(rgb, alpha), alpha

    def _finished(
        self,
        rgb: UInt8[np.ndarray, "512 512 3"],
        alpha: UInt8[np.ndarray, "512 512"],
        c2w: Float32[Tensor, "4 4"],
        points: Float[np.ndarray, "5 2"] | None,
        notes: list[str],
        faceless: str = "",
    ) -> Portrait:
        if why := emptiness(alpha):
            raise UserError(why)
        # Sharp filters leave faint rings around what is cut out.
        rgb = np.where(alpha[..., None] == 0, np.uint8(255), rgb)
        identity, without = None, faceless or self.faces.without_arcface
        if points is not None and self.faces.arcface is not None:
            identity = torch.from_numpy(self.faces.identity(rgb, points))
        picture = torch.from_numpy(rgb).permute(2, 0, 1).float() / 127.5 - 1
        opaque = torch.from_numpy(alpha).float() / 255
        return Portrait(picture.contiguous(), opaque, identity, without, c2w.float(), tuple(notes))


def _too_small(side: float) -> str:
    return f"the head is only {side:.0f} px large; {SMALLEST} or more works"
