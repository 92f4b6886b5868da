"""Scores of the surface: the figures of the mesh, and measures of the normal map of every view."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from filters.scorer import Columns, Scorer, ScorerContext, Subject
from filters.scorers.silhouette import facet, iou, islands, reduce, top_chord
from manifests.scores import IDENTITY, VIEW, Lineage, column

FIGURES = {
    "components": "number of pieces of the mesh that are more than dust",
    "largest_share": "share of the faces that the largest piece has",
    "holes": "number of handles of the largest piece",
    "tunnels": "number of tunnels through the head, without loops of hair or glasses",
    "watertight": "1 if every edge joins two faces",
}
"""Figures of each mesh in the identities table, with their meaning."""

BACKGROUND = 128 / 255
"""Value of every channel of a normal map where there is no surface."""


class MeshScorer(Scorer):
    """Floating pieces, flat cuts and the fit of surface and picture per view; the figures of the mesh per identity."""

    table = "mesh"
    members = ("alpha", "normal")
    columns = (
        column("iou", VIEW, "intersection over union of the surface's silhouette and the picture's alpha"),
        column("islands", VIEW, "silhouette outside its largest blob, as a share of that blob"),
        column("facet", VIEW, "largest flat piece of the surface, as a share of the silhouette"),
        column("top_chord", VIEW, "ratio of the width of the head just below its top to that further below"),
        *(column(name, IDENTITY, about) for name, about in FIGURES.items()),
    )
    lineage = Lineage("mesh", 1, None)

    def prepare(self, subject: Subject) -> Columns:
        figures = subject.row["mesh"] or dict.fromkeys(FIGURES, np.nan)
        return {
            **measure_surface(subject.member("normal"), subject.member("alpha")),
            **{k: float(figures[k]) for k in FIGURES},
        }


def open_scorer(context: ScorerContext) -> MeshScorer:
    """The scorer, which has no options."""
    return MeshScorer()


def measure_surface(
    normal: UInt8[np.ndarray, "v h w 3"], alpha: UInt8[np.ndarray, "v h w"]
) -> dict[str, Float[np.ndarray, " v"]]:
    """Measures of normal maps (as stored: camera space, rgb = (n + 1) / 2, grey background) and of alphas, by name."""
    reduced = reduce(normal)
    mask = surface_mask(reduced)
    vectors = reduced * 2 - 1
    vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
    solid = reduce(alpha) >= 0.5
    rows: list[dict[str, Any]] = [
        {"iou": iou(m, a), "islands": islands(m), "facet": facet(n, m), "top_chord": top_chord(m)}
        for m, a, n in zip(mask, solid, vectors, strict=True)
    ]
    return {name: np.array([row[name] for row in rows], np.float32) for name in rows[0]}


def surface_mask(normals: Float[np.ndarray, "v h w 3"]) -> Bool[np.ndarray, "v h w"]:
    """Where normal maps (rgb = (n + 1) / 2, 0 to 1) show a surface: normals have length 1, the background has length 0."""
    return np.linalg.norm((normals - BACKGROUND) * 2, axis=-1) > 0.5
