"""How long a selection takes on 10,000 identities of 125 views with five score tables, beside a pandas groupby."""

import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from synthetic import COLUMNS, POLICY, write_scores

from filters.config import SelectConfig
from filters.decisions import place_decisions
from filters.policy import Column, judge
from filters.rules import parse_policy
from filters.select import heads_of, open_tables, select
from manifests import schema
from manifests.dataset import Dataset
from manifests.plan import Plan, write_plan
from manifests.scores import VIEW, WHOLE
from manifests.shards import SUFFIXES
from manifests.storage import Storage

IDENTITIES, PER_SHARD = 10_000, 16


def write_tables(folder: Path, identities: int = IDENTITIES) -> Dataset:
    """A dataset that has scores and commit records, and no pictures."""
    plan = Plan({}, {"id": "spinmeround-125"}, identities, 0, 512, PER_SHARD, {}, {})
    storage = Storage(folder)
    write_plan(storage, plan)
    for shard in range(plan.shards):
        done = {
            "fingerprint": plan.fingerprint,
            "files": {suffix: {"size": 0, "sha256": f"{shard:064x}"} for suffix in SUFFIXES},
            "views": 0,
            "outcomes": {"kept": 16, "filtered": 0, "failed": 0},
            "run": {},
        }
        storage.write(f"shards/{schema.shard_name(shard)}.done.json", json.dumps(done).encode())
    dataset = Dataset(storage)
    write_scores(dataset)
    return dataset


def by_pandas(frames: dict[str, pd.DataFrame]) -> pd.Series:
    """The same policy in the obvious way: a groupby per rule; whether each identity is kept."""
    clip = frames["clip_janus"]
    probability = 1 / (1 + np.exp(100 * (clip["back"] - clip["front"])))
    bad = (clip["azimuth"].abs() >= 120) & (probability > 0.93)
    views_left = clip.assign(bad=bad).groupby("identity")["bad"].apply(lambda b: (~b).sum())
    fog = frames["image"].groupby("identity")["fog"].apply(lambda f: (f > 0.99).mean() <= 0.05)
    detached = frames["mesh"].groupby("identity")["detached"].apply(lambda d: (d > 0.999).sum() <= 1)
    alone = frames["duplicates"].set_index("identity")["earlier_cosine"] <= 0.98
    survivors = fog & detached & alone
    cosine = (
        frames["arcface"].set_index("identity")["mean_cosine"][survivors].sort_values(ascending=False, kind="stable")
    )
    best = cosine.index[: int(np.ceil(0.7 * len(cosine) - 1e-9))]
    return (views_left > 0) & survivors & survivors.index.isin(best)


def frames_of(opened) -> dict[str, pd.DataFrame]:
    out = {}
    for table, scores in opened.items():
        frame = scores.rows.to_pandas()
        level = scores.level(COLUMNS[table][0][0])
        out[table] = frame[(frame["view"] != WHOLE) == (level == VIEW)]
    return out


def timed(what: str, call):
    begun = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - begun
    print(f"{what:58s} {seconds:7.3f} s")
    return result, seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_tables(Path(folder))
        policy_file = Path(folder) / "policy.json"

        policy_file.write_text(json.dumps(POLICY))
        config = SelectConfig(folder, policy=str(policy_file))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        selected, whole = min((timed("spinset select, from parquet to parquet", lambda: select(config)) for _ in range(3)),
                              key=lambda r: r[1])  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        policy = parse_policy(POLICY)
        opened = open_tables(dataset, policy)
        columns = {c: Column(opened[c.split(".")[0]].level(c.split(".")[1]), *opened[c.split(".")[0]].numbers(c.split(".")[1]))
                   for rule in policy.rules for c in rule.columns}  # fmt: skip
        heads = heads_of(next(iter(opened.values())))
        undecided = place_decisions({}, heads)
        judgement, ours = min((timed("judge, columns in memory", lambda: judge(policy, heads, columns.get, undecided))
                               for _ in range(3)), key=lambda r: r[1])  # fmt: skip
        frames = frames_of(opened)
        kept, theirs = timed("pandas groupby, frames in memory", lambda: by_pandas(frames))
        assert np.array_equal(kept.to_numpy(), judgement.keep_identity), "the two disagree"
        print(f"{selected.summary['identities']}")
        print(f"{theirs / ours:.0f}x pandas; peak {peak:.2f} GB (before select {before:.2f} GB)")
        assert whole < 1 and peak < 1 and theirs > 10 * ours


if __name__ == "__main__":
    main()
