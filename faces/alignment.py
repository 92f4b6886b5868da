"""Crops of photos as in PanoHead's data: a square around the eyes and the mouth, refined by the pose of the head.

Pixels have their centres at integers here, as in OpenCV and the official cropping. Source: FFHQ's alignment;
PanoHead, recrop_images.py; SpinMeRound's copy of it.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float64, UInt8

SIZE = 512
"""Side of a crop, in pixels."""
TOP, SIDE = 0.1, 0.05
"""Margins around the square as shares of its side, above it and to its left and right. Source: PanoHead, recrop_images.py."""
MIN_SIDE = 128
"""Smallest side of the square, in pixels of the photo; a smaller face is refused, as it would be enlarged fourfold."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A square in a photo, in pixels: its centre, and the vectors from there to the middle of its right and lower sides."""

    centre: Float64[np.ndarray, "2"]
    right: Float64[np.ndarray, "2"]
    down: Float64[np.ndarray, "2"]

    @property
    def quad(self) -> Float[np.ndarray, "4 2"]:
        """Corners: upper left, lower left, lower right, upper right."""
        c, x, y = self.centre, self.right, self.down
        return np.stack([c - x - y, c - x + y, c + x + y, c + x - y]).astype(np.float32)

    @property
    def side(self) -> float:
        """Pixels of the photo along a side."""
        return 2 * min(float(np.linalg.norm(self.right)), float(np.linalg.norm(self.down)))


def ffhq_frame(points: Float[np.ndarray, "5 2"]) -> Frame:
    """The square of FFHQ around two eyes and two corners of a mouth; the nose, the third point, is not read."""
    eye, other_eye, _, mouth, other_mouth = np.asarray(points, np.float64)
    across, eyes = other_eye - eye, (eye + other_eye) / 2
    below = (mouth + other_mouth) / 2 - eyes
    right = across + below[::-1] * [1, -1]
    right *= max(2.0 * np.hypot(*across), 1.8 * np.hypot(*below)) / max(np.hypot(*right), 1e-12)
    return Frame(eyes + 0.1 * below, right, right[::-1] * [-1, 1])


def to_padded(frame: Frame) -> Float64[np.ndarray, "2 3"]:
    """The affine map from pixels of the photo to those of the crop with its margins."""
    top, side, last = int(SIZE * TOP), int(SIZE * SIDE), SIZE - 1
    corners = np.array([[side, top], [side, top + last], [side + last, top + last]], np.float32)
    return cv2.getAffineTransform(frame.quad[:3], corners)


def padded_crop(photo: UInt8[np.ndarray, "h w 3"], frame: Frame) -> UInt8[np.ndarray, "563 563 3"]:
    """The square with its margins (sRGB); beyond the photo its mirror image, blurred."""
    found = _warped(photo, frame, cv2.BORDER_REFLECT, 0)
    inside = cv2.warpAffine(np.full(photo.shape[:2], 255, np.uint8), to_padded(frame), _padded_size())
    if inside.mean() < 255:
        mask, blurred = int((SIZE - 1) * 0.02) * 2 + 1, int((SIZE - 1) * 0.03) * 2 + 1
        share = cv2.blur(inside.astype(np.float32), (mask, mask))[..., None] / 255
        found = (found * share + cv2.blur(found, (blurred, blurred)) * (1 - share)).astype(np.uint8)
    return found


def crop(photo: UInt8[np.ndarray, "h w 3"], frame: Frame) -> UInt8[np.ndarray, "512 512 3"]:
    """The square with its margins (sRGB), at the size that the models read."""
    return np.asarray(cv2.resize(padded_crop(photo, frame), (SIZE, SIZE)))


def crop_over_white(
    photo: UInt8[np.ndarray, "h w 3"], alpha: UInt8[np.ndarray, "h w"], frame: Frame
) -> tuple[UInt8[np.ndarray, "512 512 3"], UInt8[np.ndarray, "512 512"]]:
    """The same crop of a photo with an alpha, over white, and the crop of the alpha; transparent beyond the photo."""
    found = _warped(over_white(photo, alpha), frame, cv2.BORDER_CONSTANT, 255)
    opaque = _warped(alpha, frame, cv2.BORDER_CONSTANT, 0)
    return np.asarray(cv2.resize(found, (SIZE, SIZE))), np.asarray(cv2.resize(opaque, (SIZE, SIZE)))


def over_white(rgb: UInt8[np.ndarray, "h w 3"], alpha: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture (sRGB) composited over white by its alpha."""
    share = alpha[..., None].astype(np.float32) / 255
    return (rgb * share + 255 * (1 - share)).round().astype(np.uint8)


def _warped(picture: np.ndarray, frame: Frame, border: int, value: int) -> np.ndarray:
    # Lanczos reads 8 pixels: a photo much finer than the crop would alias.
    shrink = int(frame.side // (2 * SIZE))
    if shrink > 1:
        height, width = (max(n // shrink, 1) for n in picture.shape[:2])
        factors = np.array([width / picture.shape[1], height / picture.shape[0]])
        picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))
        frame = Frame((frame.centre + 0.5) * factors - 0.5, frame.right * factors, frame.down * factors)
    size = _padded_size()
    # The official script doubles the matrix as it is, a quarter of a pixel off; its models learned from such pictures.
    large = cv2.warpAffine(
        picture,
        2 * to_padded(frame),
        (2 * size[0], 2 * size[1]),
        flags=cv2.INTER_LANCZOS4,
        borderMode=border,
        borderValue=(value,) * 3,
    )
    return np.asarray(cv2.resize(large, size, interpolation=cv2.INTER_AREA))


def in_crop(points: Float[np.ndarray, "n 2"], frame: Frame) -> Float[np.ndarray, "n 2"]:
    """Pixels in the crop of points in pixels of the photo."""
    matrix = to_padded(frame)
    return (points @ matrix[:, :2].T + matrix[:, 2] + 0.5) * (SIZE / np.array(_padded_size())) - 0.5


def _padded_size() -> tuple[int, int]:
    return int(SIZE * (1 + SIDE + SIDE)), int(SIZE * (1 + TOP))
