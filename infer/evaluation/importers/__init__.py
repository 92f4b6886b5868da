"""Readers of other multiview sets as held-out people: NeRSemble, FaceScape and RenderMe-360 (experimental)."""

from pathlib import Path
from typing import Any

from infer.config import StageConfig
from infer.evaluation.importers.facescape import FaceScape
from infer.evaluation.importers.nersemble import NeRSemble
from infer.evaluation.importers.renderme360 import RenderMe360
from infer.evaluation.importers.stage import StagePeople
from manifests.errors import UserError

STAGES = {"nersemble": NeRSemble, "facescape": FaceScape, "renderme360": RenderMe360}


def open_stage(layout: str, root: str, config: StageConfig, detector: Any, resolution: int, seed: int) -> StagePeople:
    """The people of a set; `detector` is insightface's SCRFD, which finds their faces.

    Raises:
        MissingFile: the folder does not exist.
        UserError: the folder has another layout, or no detector is given.
    """
    if detector is None:
        raise UserError(f"--layout {layout} needs --detector: heads are placed by the faces it finds in their views")
    stage = STAGES[layout](Path(root), config.sequence, config.frame, seed)
    return StagePeople(stage, layout, config, detector, resolution)
