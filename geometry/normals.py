"""Unit normals: their frames and their pictures.

A normal map is in the camera's OpenGL axes unless it says otherwise (`Cameras.view_rotation`: x right, y up, z towards
the viewer), so a surface that faces the camera is light blue.
"""

import numpy as np
from jaxtyping import Float, UInt8


def unit(vectors: Float[np.ndarray, "*n"], axis: int = -1) -> Float[np.ndarray, "*n"]:
    """Vectors scaled to length one; zero stays zero."""
    lengths = np.sqrt(np.square(vectors).sum(axis, keepdims=True))
    return vectors / np.maximum(lengths, np.finfo(vectors.dtype).tiny)


def rotate(vectors: Float[np.ndarray, "*n 3"], rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "*n 3"]:
    """Vectors in another frame: world to camera with a camera's `view_rotation`, back with its transpose."""
    return np.einsum("...j,ij->...i", vectors, rotation)


def encode_normals(normals: Float[np.ndarray, "*n 3"]) -> UInt8[np.ndarray, "*n 3"]:
    """Colours (n + 1) / 2 rounded to the nearest of 255 steps, halves up: background, the zero vector, is grey 128."""
    return np.floor(127.5 * normals + 128).astype(np.uint8)


def decode_normals(rgb: UInt8[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Unit normals of their colours, within 0.4 degrees of those encoded; grey is background and gives zero."""
    vectors = rgb.astype(np.float32) / 127.5 - 1
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    # A unit vector has a component of at least 0.57, so nothing shorter than this was a normal.
    return np.where(lengths > 0.5, vectors / lengths, 0)
