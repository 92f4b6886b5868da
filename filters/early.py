"""Early rejection: a few small views of a head are scored and judged before its mesh and its other views are made."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa

from filters.config import RejectConfig
from filters.policies import PRESETS
from filters.policy import Decisions, judge
from filters.rules import Policy, read_policy
from filters.scorer import Scorer, ScorerContext, identity_rows, prepare
from filters.scorers import SCORERS
from filters.select import check_requires, column_of, heads_of
from geometry.cameras import orbit
from manifests.errors import UserError
from manifests.scores import Scores
from weights.files import absolute

AZIMUTH = (0.0, 30.0, -30.0, 150.0, 180.0, -150.0)
"""Degrees: three frontal views, whose faces can be compared, and three views of the back."""
MEMBERS = frozenset({"rgb", "alpha"})
"""Members of the small views; a normal map needs the mesh."""


@dataclass(frozen=True)
class EarlyRejection:
    """A policy on six small views of each head, which decides whether the head is made (`datagen.heads.Rejection`)."""

    config: RejectConfig

    def lineage(self, source: str) -> dict[str, Any]:
        """The policy, the views, and the scorers with the hashes of their weights, for heads of a source.

        Raises:
            UserError: an embedded model was not trained on such heads, or the policy cannot judge such views, which is tried
                on blank ones before any head is made.
        """
        policy, document = read_policy(self.config.policy)
        scorers = self.scorers(policy, "cpu", source)
        for scorer in scorers:
            known = [f.name for f in scorer.columns]
            if unknown := [name for name in policy.tables[scorer.table] if name not in known]:
                raise UserError(
                    f"the scores of {scorer.table} have no column {unknown[0]!r}; they have {', '.join(known)}"
                )
        check_requires(policy, {scorer.table: scorer.lineage for scorer in scorers})
        EarlyJudge(policy, scorers, self.config.resolution)(*_blank(self.config.resolution))
        return {"policy": document, "azimuth": AZIMUTH, "resolution": self.config.resolution,
                "scorers": {s.table: asdict(s.lineage) for s in scorers}}  # fmt: skip

    def scorers(self, policy: Policy, device: str, source: str) -> list[Scorer]:
        """The scorers whose tables the policy reads; raises UserError for rules that need more than six views."""
        renamed = {"clip_janus": self.config.clip.table, "arcface": self.config.arcface.table}
        names = {renamed.get(name, name): name for name in SCORERS}
        context, scorers = ScorerContext(self.config, source, device, "--reject."), []
        for table in policy.tables:
            scorer = import_module(SCORERS[names[table]]).open_scorer(context) if table in names else None
            if not isinstance(scorer, Scorer) or not MEMBERS.issuperset(scorer.members):
                raise UserError(
                    f"--reject.policy {self.config.policy} reads {table}; before a head is made only scorers of pictures can "
                    "run"
                )
            scorers.append(scorer)
        if ranked := [rule.name for rule in policy.rules if rule.is_quantile]:
            raise UserError(
                f"--reject.policy {self.config.policy}: rule {ranked[0]} ranks all heads; one at a time has no rank"
            )
        return scorers

    def open(self, device: str, source: str) -> "EarlyJudge":
        policy, _ = read_policy(self.config.policy)
        return EarlyJudge(policy, self.scorers(policy, device, source), self.config.resolution)


class EarlyJudge:
    """A policy and its scorers for small views; a head of which the policy keeps no view is rejected."""

    azimuth = AZIMUTH
    elevation = (0.0,) * len(AZIMUTH)

    def __init__(self, policy: Policy, scorers: Sequence[Scorer], resolution: int):
        self.policy, self.scorers, self.resolution = policy, scorers, resolution

    def __call__(self, row: dict[str, Any], views: pa.Table, pictures: dict[str, list[np.ndarray]]) -> str | None:
        """The first rule that the head fails, as text; None if it is kept."""
        opened = {scorer.table: _scores(scorer, row, views, pictures) for scorer in self.scorers}
        heads = heads_of(next(iter(opened.values())))
        verdict = judge(self.policy, heads, partial(column_of, opened), Decisions.none(heads))
        if verdict.keep_identity[0]:
            return None
        failed = int(verdict.identities.failed[0]) or int(np.bitwise_or.reduce(verdict.views.failed))
        return str(self.policy.rules[(failed & -failed).bit_length() - 1])


def _blank(resolution: int) -> tuple[dict[str, Any], pa.Table, dict[str, list[np.ndarray]]]:
    """Blank views, on which a policy is tried: their row of an identity, rows of views, and pictures by member."""
    cameras = orbit(np.array(AZIMUTH), np.zeros(len(AZIMUTH)))
    columns = {"view": np.arange(len(AZIMUTH), dtype=np.int16), "azimuth": np.array(AZIMUTH, np.float32)}
    columns["elevation"] = np.zeros(len(AZIMUTH), np.float32)
    columns |= {name: list(getattr(cameras, name).reshape(len(AZIMUTH), -1).numpy()) for name in ("c2w", "K")}
    side = (resolution, resolution)
    pictures = {"rgb": np.full((*side, 3), 128, np.uint8), "alpha": np.full(side, 255, np.uint8)}
    row = {"identity": 0, "facts": "{}", "mesh": None}
    return row, pa.table(columns), {name: [picture] * len(AZIMUTH) for name, picture in pictures.items()}


def _scores(scorer: Scorer, row: dict[str, Any], views: pa.Table, pictures: dict[str, list[np.ndarray]]) -> Scores:
    """The scores of one identity, as a table of this scorer would hold them."""
    numbers = scorer.score(prepare(scorer, row, views, pictures))
    rows = identity_rows(scorer, row["identity"], views, numbers)
    return Scores(scorer.table, scorer.lineage, {f.name: f for f in scorer.columns}, rows)


def open_rejection(config: RejectConfig) -> EarlyRejection | None:
    """The rejection for workers in any folder; None if no policy is given."""
    if not config.policy:
        return None
    policy = config.policy if config.policy in PRESETS else absolute(config.policy)
    return EarlyRejection(
        replace(config, policy=policy, clip=config.clip.absolute(), arcface=config.arcface.absolute())
    )
