"""Preprocesses photos: one head, cropped as in the training data, over white, with its identity and its camera."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from faces.alignment import MIN_SIDE, SIZE, crop, crop_over_white, ffhq_frame, in_crop, over_white
from faces.landmarks import face_points, project
from faces.matte import BiSeNet, emptiness, load_bisenet, parsed_alpha, uniform_alpha
from faces.models import FaceModels, load_face_models
from faces.pose import refined, refusal
from geometry.cameras import orbit
from geometry.directions import turned
from infer.config import PortraitConfig
from infer.photo import Photo
from manifests.errors import UserError

RELIABLE_YAW = 45.0
"""Degrees of yaw above which a note says that the identity and the views are less reliable."""
FACELESS_YAW = 90.0
"""Degrees of yaw above which a view shows no face."""


@dataclass(frozen=True, eq=False)
class Portrait:
    """One head, ready for a model."""

    rgb: Float32[Tensor, "3 512 512"]
    """The picture over white, sRGB in [-1, 1]."""
    alpha: Float32[Tensor, "512 512"]
    """The opacity in [0, 1]."""
    identity: Float32[Tensor, "512"] | None
    """The ArcFace embedding, of unit length, or None."""
    without_identity: str
    """The reason why there is no identity, or empty."""
    c2w: Float32[Tensor, "4 4"]
    """The camera to world matrix of the picture, OpenCV axes; its focal length is `geometry.cameras.FOCAL`."""
    notes: tuple[str, ...]
    """Remarks for the user, such as that the largest of several faces was taken."""


def load_preprocessor(config: PortraitConfig, device: str = "cpu") -> "PhotoPreprocessor":
    """Load the face models and the face parser that the settings name.

    Raises:
        MissingFile: a file is missing; the message names it.
        UserError: a file is another model than it should be, or no face detector is given for photos.
    """
    if not config.aligned and not config.face.models:
        raise UserError(
            "a photo needs a face detector: --face.models names the folder of scrfd_10g_bnkps.onnx and 1k3d68.onnx "
            "(or --aligned for a picture that is cropped already)"
        )
    parser = load_bisenet(config.matte.parser, device) if config.matte.parser else None
    return PhotoPreprocessor(config, load_face_models(config.face, device), parser)


@dataclass(frozen=True, eq=False)
class PhotoPreprocessor:
    """Makes portraits of photos with loaded models."""

    config: PortraitConfig
    faces: FaceModels
    parser: BiSeNet | None

    def __call__(self, photo: Photo) -> Portrait:
        """Make the portrait of a photo.

        Raises:
            UserError: it shows no head that can be cropped, or its background is not known; names the photo.
        """
        try:
            return self._aligned(photo) if self.config.aligned else self._cropped(photo)
        except ValueError as error:
            raise UserError(f"{photo.name}: {error}") from error

    def _cropped(self, photo: Photo) -> Portrait:
        # Faces are detected over white, because transparent pixels may hide anything.
        over = photo.rgb if photo.alpha is None else over_white(photo.rgb, photo.alpha)
        face = self.faces.largest(over)
        if face is None:
            raise UserError(
                "no face was found; give a photo with the whole head and some space around it, or --aligned for a "
                "picture that is cropped already"
            )
        notes = list(photo.notes)
        if face.count > 1:
            notes.append(f"{face.count} faces, the largest was taken")
        frame = ffhq_frame(face.points)
        if frame.side < MIN_SIDE / 2:  # too small, however it is refined
            raise UserError(_too_small(frame.side))
        pose = self.faces.pose(over, face, frame)
        if why := refusal(pose):
            raise UserError(why)
        frame = refined(frame, pose)
        if frame.side < MIN_SIDE:
            raise UserError(_too_small(frame.side))
        yaw = abs(pose.angles[0])
        if yaw > RELIABLE_YAW:
            notes.append(
                f"the head is turned by {yaw:.0f} degrees; identity and views are surest within {RELIABLE_YAW:.0f}"
            )
        if photo.alpha is None:
            rgb, alpha = self._without_background(crop(photo.rgb, frame))
        else:
            rgb, alpha = crop_over_white(photo.rgb, photo.alpha, frame)
        return self._finished(rgb, alpha, pose.camera.c2w[0], in_crop(face.points, frame), notes)

    def _aligned(self, photo: Photo) -> Portrait:
        height, width = photo.rgb.shape[:2]
        if height != width:
            raise UserError(f"it is {width} x {height} px; an aligned picture is square")
        how = cv2.INTER_AREA if width > SIZE else cv2.INTER_CUBIC
        if photo.alpha is None:
            resized = np.asarray(cv2.resize(photo.rgb, (SIZE, SIZE), interpolation=how))
            rgb, alpha = self._without_background(resized)
        else:
            white = over_white(photo.rgb, photo.alpha)
            rgb = np.asarray(cv2.resize(white, (SIZE, SIZE), interpolation=how))
            alpha = np.asarray(cv2.resize(photo.alpha, (SIZE, SIZE), interpolation=how))
        notes = list(photo.notes) + ([f"{width} px were enlarged to {SIZE}"] if width < SIZE else [])
        cameras = orbit(np.array([self.config.azimuth]), np.array([self.config.elevation]))
        points, why = project(face_points(), cameras, SIZE)[0], ""
        if (yaw := float(turned(np.array([self.config.azimuth]))[0])) > FACELESS_YAW:
            points, why = None, f"the head is turned away by {yaw:.0f} degrees"
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
                "it has no transparency and its background is not known: --matte.parser names the face-parsing weights "
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
        # Sharp filters leave faint rings around the head.
        rgb = np.where(alpha[..., None] == 0, np.uint8(255), rgb)
        identity, without = None, faceless or self.faces.without_arcface
        if points is not None and self.faces.arcface is not None:
            identity = torch.from_numpy(self.faces.identity(rgb, points))
        picture = torch.from_numpy(rgb).permute(2, 0, 1).float() / 127.5 - 1
        opacity = torch.from_numpy(alpha).float() / 255
        return Portrait(picture.contiguous(), opacity, identity, without, c2w.float(), tuple(notes))


def _too_small(side: float) -> str:
    return f"the head is only {side:.0f} px large; {MIN_SIDE} or more works"
