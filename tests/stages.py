"""Sets that calibrated stages leave, in small: a face of five dots, in the layouts of NeRSemble and FaceScape."""

import json
from pathlib import Path

import cv2
import numpy as np

from faces.landmarks import face_points
from geometry.cameras import orbit

POINTS = face_points().astype(np.float64)
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]])
AZIMUTHS = np.array([0.0, 35.0, -35.0, 10.0, 150.0])
ELEVATIONS = np.array([0.0, 10.0, -10.0, 25.0, 0.0])
TURN = cv2.Rodrigues(np.array([0.3, -1.1, 2.0]))[0]
UNIT, PLACE = 0.7, np.array([3.0, -1.0, 0.5])


class FiveDots:
    """A detector that knows a face by the colours of five dots."""

    def detect(self, picture, det_thresh):
        rgb = picture[..., ::-1].astype(int)
        at = [np.argwhere((np.abs(rgb - colour) < 60).all(-1)) for colour in COLOURS]
        if min(map(len, at)) == 0:
            return np.empty((0, 5)), np.empty((0, 5, 2))
        return np.array([[0, 0, 9, 9, 0.9]]), np.array([[found.mean(0)[::-1] for found in at]])


def stage(width: int, height: int, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics, and world-to-camera matrices of a stage whose world is turned, moved and in another unit."""
    cameras = orbit(AZIMUTHS, ELEVATIONS)
    c2w = cameras.c2w.double().numpy()
    rotation = TURN @ c2w[:, :3, :3]
    position = UNIT * c2w[:, :3, 3] @ TURN.T + PLACE
    w2c = np.tile(np.eye(4), (len(c2w), 1, 1))
    w2c[:, :3, :3] = rotation.transpose(0, 2, 1)
    w2c[:, :3, 3] = -np.einsum("vji,vj->vi", rotation, position)
    return np.array([[focal, 0, width / 2 - 8], [0, focal, height / 2 + 5], [0, 0, 1]]), w2c


def seen(K: np.ndarray, w2c: np.ndarray, width: int, height: int, radius: int = 4) -> np.ndarray:
    """The dots of a face before grey; a view from behind has none."""
    picture = np.full((height, width, 3), 90, np.uint8)
    world = UNIT * POINTS @ TURN.T + PLACE
    if (w2c[:3, :3] @ TURN)[2, 2] > 0:
        return picture
    x, y, z = K @ (w2c[:3, :3] @ world.T + w2c[:3, 3:])
    for colour, u, v in zip(COLOURS, x / z, y / z, strict=True):
        cv2.circle(picture, (round(u), round(v)), radius, colour.tolist(), -1)
    return picture


def write(file: Path, rgb: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), np.ascontiguousarray(rgb[..., ::-1]) if rgb.ndim == 3 else rgb)


def nersemble(root: Path) -> Path:
    """Version 1: small pictures with masks."""
    width, height = 2200, 3208
    K, w2c = stage(width, height, 8000.0)
    person = root / "018"
    params = {"intrinsics": K.tolist(), "world_2_cam": {f"22{i}": m.tolist() for i, m in enumerate(w2c)}}
    person.mkdir(parents=True)
    (person / "camera_params.json").write_text(json.dumps(params))
    small = K.copy()
    small[:2] /= 8
    frame = person / "sequences" / "EMO-1-shout+laugh" / "frame_00003"
    for i, matrix in enumerate(w2c):
        rgb = seen(small, matrix, width // 8, height // 8)
        write(frame / "images-2x-73fps" / f"cam_22{i}.png", rgb)
        write(frame / "alpha_map-73fps" / f"cam_22{i}.png", np.where((rgb == 90).all(-1), 0, 255).astype(np.uint8))
    return root


def facescape(root: Path) -> Path:
    width, height = 400, 300
    K, w2c = stage(width, height, 900.0)
    folder, params = root / "122" / "4_anger", {}
    distortion = [0.02, -0.01, 0.001, -0.001, 0.0]
    for i, matrix in enumerate(w2c):
        flat = seen(K, matrix, width, height)
        # Where each distorted pixel comes from.
        y, x = np.mgrid[:height, :width].astype(np.float32)
        source = cv2.undistortPoints(np.stack([x, y], -1).reshape(-1, 1, 2), K, np.array(distortion), P=K)
        source = source.reshape(height, width, 2)
        write(
            folder / f"{i}.jpg",
            cv2.remap(flat, source[..., 0], source[..., 1], cv2.INTER_LINEAR, borderValue=(90,) * 3),
        )
        params |= {
            f"{i}_K": K.tolist(),
            f"{i}_Rt": matrix[:3].tolist(),
            f"{i}_distortion": distortion,
            f"{i}_width": width,
            f"{i}_height": height,
            f"{i}_valid": i != 4,
        }
    (folder / "params.json").write_text(json.dumps(params))
    return root
