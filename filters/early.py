"""Judges a head by a few small views before the rest of it is made, by the scorers and policies of whole datasets."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from filters.arcface import ArcFaceConfig, ArcFaceScorer
from filters.clip_janus import ClipConfig, ClipScorer
from filters.image import ImageScorer
from filters.policy import Decisions, judge
from filters.rows import identity_rows, wanted_views
from filters.rules import Policy, read_policy
from filters.scorer import Scorer, make_subject
from filters.select import column_of, heads_of
from manifests.scores import Scores

AZIMUTH = (0.0, 30.0, -30.0, 150.0, 180.0, -150.0)
"""Three frontal views, whose faces can be compared, and three of the back."""


@dataclass(frozen=True)
class RejectConfig:
    """Look at six small views of each head first, and make no more of a head that fails a policy."""

    policy: str = ""
    """early, or a JSON file whose rules read the tables image, clip_janus and arcface; every head is made unless given."""
    resolution: int = 128
    """Of the views that are looked at."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    arcface: ArcFaceConfig = field(default_factory=ArcFaceConfig)

    def __post_init__(self) -> None:
        if self.resolution < 32:
            raise ValueError(f"--reject.resolution is {self.resolution}; less than 32 pixels show no face")

    def lineage(self) -> dict[str, Any]:
        """The policy, the views, and the scorers with the hashes of their weights."""
        policy, document = read_policy(self.policy)
        scorers = self.scorers(policy, "cpu")
        for scorer in scorers:
            known = [f.name for f in scorer.columns]
            if unknown := [name for name in policy.tables[scorer.table] if name not in known]:
                raise ValueError(
                    f"the scores of {scorer.table} have no column {unknown[0]!r}; they have {', '.join(known)}"
                )
        return {"policy": document, "azimuth": AZIMUTH, "resolution": self.resolution,
                "scorers": {s.table: asdict(s.lineage) for s in scorers}}  # fmt: skip

    def scorers(self, policy: Policy, device: str) -> list[Scorer]:
        """The scorers whose tables the policy reads; raises ValueError for rules that need more than six views."""
        makers = {
            "image": ImageScorer,
            self.clip.table: lambda: ClipScorer(self.clip, device),
            self.arcface.table: lambda: ArcFaceScorer(self.arcface, device),
        }
        if unknown := [table for table in policy.tables if table not in makers]:
            raise ValueError(
                f"--reject.policy {self.policy} reads {unknown[0]}; before a head is made there are {', '.join(makers)}"
            )
        if ranked := [rule.name for rule in policy.rules if rule.is_quantile]:
            raise ValueError(
                f"--reject.policy {self.policy}: rule {ranked[0]} ranks all heads; one at a time has no rank"
            )
        return [makers[table]() for table in policy.tables]

    def open(self, device: str) -> "EarlyJudge":
        policy, _ = read_policy(self.policy)
        return EarlyJudge(policy, self.scorers(policy, device), self.resolution)

    def absolute(self) -> "RejectConfig":
        """The same, with paths that hold wherever a worker runs."""

        def full(path: str) -> str:
            return str(Path(path).absolute()) if path and Path(path).exists() else path

        kind, _, folder = self.clip.model.partition(":")
        model = f"{kind}:{full(folder)}" if folder else self.clip.model
        clip = replace(self.clip, model=model, checkpoint=full(self.clip.checkpoint))
        arcface = replace(self.arcface, model=full(self.arcface.model), detector=full(self.arcface.detector))
        return replace(self, policy=full(self.policy), clip=clip, arcface=arcface)


class EarlyJudge:
    """A policy and its scorers, on previews; what fails, identity or any view of it that a rule drops it for, is rejected."""

    azimuth = AZIMUTH
    elevation = (0.0,) * len(AZIMUTH)

    def __init__(self, policy: Policy, scorers: Sequence[Scorer], resolution: int):
        self.policy, self.scorers, self.resolution = policy, scorers, resolution

    def __call__(self, row: dict[str, Any], views: pa.Table, pictures: dict[str, list[np.ndarray]]) -> str | None:
        """The first rule that the head fails."""
        opened = {scorer.table: _scores(scorer, row, views, pictures) for scorer in self.scorers}
        heads = heads_of(next(iter(opened.values())))
        verdict = judge(self.policy, heads, partial(column_of, opened), Decisions.none(heads))
        if verdict.keep_identity[0]:
            return None
        failed = int(verdict.identities.failed[0]) or int(np.bitwise_or.reduce(verdict.views.failed))
        return str(self.policy.rules[(failed & -failed).bit_length() - 1])


def _scores(scorer: Scorer, row: dict[str, Any], views: pa.Table, pictures: dict[str, list[np.ndarray]]) -> Scores:
    """What a scorer says of one identity, as a table of it would hold."""
    wanted = wanted_views(scorer, views)
    own = {name: [pictures[name][i] for i in np.flatnonzero(wanted).tolist()] for name in scorer.members}
    numbers = scorer.score(scorer.prepare(make_subject(row, views.filter(pa.array(wanted)), own)))
    rows = identity_rows(scorer, row["identity"], views, numbers)
    return Scores(scorer.table, scorer.lineage, {f.name: f for f in scorer.columns}, rows)
