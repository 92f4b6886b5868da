"""How well the filters work: procedural heads with planted defects, none of which any scorer was trained on.

    python benchmarks/filter_quality.py OUT [--identities 1000]

makes the heads in OUT (resumable, about half an hour on two cores), scores them with the default scorers and prints the
tables of docs/results.md. Every kind of defect is planted independently in a tenth of the heads, strengths from 0.25 to 1.
With --identities 0 it only measures how well tunnels tell planted holes, on surfaces without pictures (about a minute).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from tyro.conf import Positional

from datagen.config import DEFECT_KINDS, GenerateConfig, MeshConfig, ProceduralConfig, SourceConfig
from datagen.generate import generate
from datagen.meshing import extract
from datagen.sources.procedural import ProceduralSource
from filters.config import ArcFaceConfig, ScoreConfig, SelectConfig
from filters.score import score
from filters.select import select
from geometry.directions import turned
from jobs.pool import PoolConfig
from manifests.dataset import Dataset
from manifests.scores import open_scores, shard_hashes
from manifests.selection import read_selection
from manifests.tables import read_parquet
from tools.train_arcface import area_under_curve

SEED, CLEAN_SEED = 60_000_000, 30_000_000
"""The embedded models learned from seeds from 10,000,000 up; measures and limits were tried on those from 20,000,000 up."""
PAPER_LIMIT, PAPER_SHARE, SCALE = 0.93, 0.7, 100
SCORERS = ("mesh", "image", "clip_janus", "arcface")
PRESETS = {
    "gen3d-face": {"janus", "identity_drift"},
    "spinmeround": {"janus", "floater", "hole", "haze", "truncated"},
    "diffportrait360": {"janus"},
}
"""Defects that each preset is meant to drop."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Config:
    """Make, score and select heads with planted defects, and say how well that went."""

    out: Positional[Path] = Path("out/filter_quality")
    identities: int = 1000
    angle_identities: int = 16
    """Clean heads of 125 views, for the table of angles."""
    hole_identities: int = 60
    """Heads of which a fifth have a planted hole and no other defect, for the line on tunnels."""
    workers: int = 0


def make(config: Config) -> Dataset:
    """Heads with defects, seen from 16 directions all around, scored."""
    pool = PoolConfig(workers=config.workers)
    dataset = generate(
        GenerateConfig(
            str(config.out / "heads"),
            SourceConfig(procedural=ProceduralConfig(defect_rate=0.1)),
            identities=config.identities,
            seed=SEED,
            rig="scatter-16",
            resolution=128,
            mesh=MeshConfig(resolution=128),
            pool=pool,
        )
    )
    score(ScoreConfig(dataset.storage.url, scorers=SCORERS, pool=pool))
    return dataset


def of_identities(dataset: Dataset) -> pd.DataFrame:
    """A row per identity: the strength of each planted defect (0 if none), and each scorer's number about it."""
    rows = dataset.all_identities.to_pylist()
    planted = [{d["kind"]: d["strength"] for d in row["defects"] or []} for row in rows]
    table = pd.DataFrame(planted, [row["identity"] for row in rows], list(DEFECT_KINDS)).fillna(0.0)
    scores = {name: read_parquet(dataset.storage, f"scores/{name}.parquet").to_pandas() for name in SCORERS}
    views = {name: rows[rows.view >= 0].set_index("identity") for name, rows in scores.items()}
    whole = {name: rows[rows.view < 0].set_index("identity") for name, rows in scores.items()}
    back = views["clip_janus"][turned(views["clip_janus"].azimuth.to_numpy()) >= 120]
    table["janus score"] = (back.front - back.back).groupby(level=0).max()
    table["identity_drift score"] = -whole["arcface"].far_cosine
    table["mean cosine"] = whole["arcface"].mean_cosine
    table["floater score"] = views["mesh"].islands.groupby(level=0).max()
    table["hole score"] = whole["mesh"].tunnels.astype(float)
    level = views["mesh"][views["mesh"].elevation.abs() <= 12]
    # The two measures of a cut, each in units of the preset's limit.
    facet = views["mesh"].facet.groupby(level=0).max() / 0.06
    table["truncated score"] = np.maximum(facet, level.top_chord.groupby(level=0).median() / 0.55)
    table["haze score"] = views["image"].fog.groupby(level=0).max()
    return table


def area(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; a score that is no number counts as the worst."""
    return area_under_curve(np.nan_to_num(score, nan=np.inf), positive)


def interval(score: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """95 % of the areas of bootstrap samples of identities."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(score), size=(RESAMPLES, len(score)))
    low, high = np.quantile([area(score[p], positive[p]) for p in picks if positive[p].any()], [0.025, 0.975])
    return float(low), float(high)


def rates(dropped: np.ndarray, positive: np.ndarray) -> str:
    """Precision and recall with Wilson intervals."""
    hit = int((dropped & positive).sum())
    return f"{_wilson(hit, int(dropped.sum()))} | {_wilson(hit, int(positive.sum()))}"


def _wilson(hit: int, of: int) -> str:
    if not of:
        return "-"
    z, p = 1.96, hit / of
    middle, half = p + z * z / (2 * of), z * np.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    low, high = ((middle + sign * half) / (1 + z * z / of) for sign in (-1, 1))
    return f"{p:.3f} ({low:.3f}-{high:.3f})"


def best_limit(score: np.ndarray, positive: np.ndarray) -> float:
    """The limit above which dropping gives the highest F1."""
    order = np.argsort(-np.nan_to_num(score, nan=np.inf), kind="stable")
    hits = positive[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + positive.sum())
    # A limit lies between two different scores.
    ranked = np.nan_to_num(score, nan=np.inf)[order]
    last = np.append(ranked[1:] < ranked[:-1], True)
    at = int(np.argmax(np.where(last, f1, -1)))
    return float(ranked[at : at + 2].mean())


def heading(*titles: str) -> None:
    print(f"\n| {' | '.join(titles)} |\n|{'---|' * len(titles)}")


def scorers(table: pd.DataFrame) -> None:
    """One line per kind of defect: how well its score ranks heads, and what the best limit gives where it was not set."""
    heading("defect", "planted", "AUC (95 %)", "weak, middle, strong", "best limit: precision", "recall")
    even = np.arange(len(table)) % 2 == 0
    for kind in DEFECT_KINDS:
        score, strength = table[f"{kind} score"].to_numpy(), table[kind].to_numpy()
        positive = strength > 0
        low, high = interval(score, positive)
        thirds = []
        for weakest, strongest in ((0.25, 0.5), (0.5, 0.75), (0.75, 1.01)):
            own = ~positive | ((strength >= weakest) & (strength < strongest))
            thirds.append(f"{area(score[own], positive[own]):.3f}" if positive[own].any() else "-")
        dropped = np.zeros(len(table), bool)
        for half in (even, ~even):
            dropped[half] = ~(score[half] <= best_limit(score[~half], positive[~half]))
        auc = f"{area(score, positive):.4f} ({low:.4f}-{high:.4f})"
        print(f"| {kind} | {positive.sum()} | {auc} | {', '.join(thirds)} | {rates(dropped, positive)} |")


def papers(table: pd.DataFrame) -> None:
    """Precision and recall at the two limits of Gen3D-Face."""
    heading("Gen3D-Face's rule", "precision", "recall")
    front = 1 / (1 + np.exp(-SCALE * table["janus score"].to_numpy()))
    janus = rates(front > PAPER_LIMIT, table.janus.to_numpy() > 0)
    print(f"| softmax front of a back view above {PAPER_LIMIT}, against Janus | {janus} |")
    left = front <= PAPER_LIMIT
    cosine, drift = table["mean cosine"].to_numpy()[left], table.identity_drift.to_numpy()[left] > 0
    dropped = np.ones(len(cosine), bool)
    dropped[np.argsort(-cosine, kind="stable")[: int(np.ceil(PAPER_SHARE * len(cosine)))]] = False
    print(f"| then all but the highest 70 % of mean cosine, against identity drift | {rates(dropped, drift)} |")


def presets(dataset: Dataset, table: pd.DataFrame) -> None:
    """Heads that each preset drops, and defects that remain among those it keeps."""
    heading("preset", "keeps whole", "precision", "recall", "with such a defect before", "after")
    for preset, targets in PRESETS.items():
        select(SelectConfig(dataset.storage.url, preset))
        rows = read_selection(dataset, preset).rows.to_pandas()
        # Of gen3d-face's views only the flagged ones go: a head of which one goes counts as dropped here.
        kept = rows.groupby("identity").keep.all().reindex(table.index).to_numpy(bool)
        bad = (table[sorted(targets)] > 0).any(axis=1).to_numpy()
        print(f"| {preset} | {kept.mean():.1%} | {rates(~kept, bad)} | {bad.mean():.1%} | {bad[kept].mean():.1%} |")


def angles(config: Config) -> None:
    """Clean heads of 125 views: who passes one limit on ArcFace's agreement over all views, and who passes the presets."""
    pool = PoolConfig(workers=config.workers)
    job = GenerateConfig(
        str(config.out / "angles"),
        identities=config.angle_identities,
        seed=CLEAN_SEED,
        resolution=128,
        mesh=MeshConfig(resolution=128),
        identities_per_shard=2,
        pool=pool,
    )
    dataset = generate(job)
    everywhere = ArcFaceConfig(max_turn=179.9, back_turn=180, table="arcface_all")
    score(ScoreConfig(dataset.storage.url, scorers=("arcface",), arcface=everywhere, pool=pool))
    score(ScoreConfig(dataset.storage.url, scorers=SCORERS, pool=pool))
    rows = read_parquet(dataset.storage, "scores/arcface_all.parquet").to_pandas()
    rows = rows[rows.view >= 0]
    turn = (turned(rows.azimuth.to_numpy()) // 30).clip(0, 5).astype(int)
    limit = rows.agreement[turn < 2].quantile(0.05)
    passes = {f"agreement above {limit:.2f}": (rows.agreement > limit).to_numpy(float)}
    for preset in PRESETS:
        select(SelectConfig(dataset.storage.url, preset))
        selected = read_selection(dataset, preset).rows.to_pandas()
        # Of the heads that stay, so that a share that always goes does not count as an angle.
        stays = selected.identity.isin(selected[(selected.view < 0) & selected.keep].identity)
        passes[preset] = np.where(stays, selected.keep, np.nan)[selected.view >= 0]
    print(
        f"\n{config.angle_identities} sound heads of 125 views; the flat limit passes 95 % of views turned up to 60 degrees."
    )
    heading("turned", "views", "mean agreement", *passes)
    for step in range(6):
        own = turn == step
        shares = [f"{np.nanmean(p[own]):.1%}" for p in passes.values()]
        print(
            f"| {30 * step} to {30 * step + 30} | {own.sum()} | {rows.agreement[own].mean():.3f} | {' | '.join(shares)} |"
        )


def holes(config: Config) -> None:
    """How well the tunnels of the surface tell heads with a planted hole from sound ones; no pictures are made."""
    source = ProceduralSource(ProceduralConfig(defect_rate=0.2, defects=("hole",)))
    heads = [source.head(SEED + i) for i in range(config.hole_identities)]
    planted = np.array([bool(head.facts()["defects"]) for head in heads])
    tunnels = np.array([extract(head, MeshConfig(resolution=128))[1].tunnels for head in heads], float)
    heading("holes alone", "planted", "AUC", "sound heads with tunnels", "holes without")
    wrong, missed = int((tunnels[~planted] > 0).sum()), int((tunnels[planted] == 0).sum())
    print(f"| {len(heads)} heads | {planted.sum()} | {area(tunnels, planted):.4f} | {wrong} | {missed} |")


def main() -> None:
    config = tyro.cli(Config)
    holes(config)
    if not config.identities:
        return
    dataset = make(config)
    table = of_identities(dataset)
    hashes = shard_hashes(dataset)
    weights = {
        name: open_scores(dataset, name, hashes, []).lineage.weights_sha256 for name in ("clip_janus", "arcface")
    }
    defective = (table[list(DEFECT_KINDS)] > 0).any(axis=1).sum()
    print(f"\n{len(table)} heads, {defective} of them with a defect; weights {weights}")
    scorers(table)
    papers(table)
    presets(dataset, table)
    angles(config)


if __name__ == "__main__":
    main()
