"""From tables and a policy to a selection: reasons, counts that add up, decisions, the same bytes, and what flips."""

import json
from pathlib import Path

import numpy as np
import pytest
from tables import bare_dataset, commit, write_scores

from filters.config import SelectConfig
from filters.decisions import Decision, DecisionLog, now
from filters.rules import read_policy
from filters.select import diff, select
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.scores import WHOLE
from manifests.selection import read_selection, selection_file, selections

AZIMUTHS = [0.0, 60.0, 120.0, 180.0]
nan = float("nan")


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """4 identities: 0 is sound, 1 has a face behind, 2 agrees least with itself, 3 was never detected."""
    dataset = bare_dataset(tmp_path / "heads")
    sound, janus = [None, None, 0.1, 0.1], [None, None, 0.1, 0.3]
    views = {"front": [sound, janus, sound, sound], "back": [[None, None, 0.2, 0.2]] * 4}
    weights = read_policy("gen3d-face")[0].requires["clip_janus"]["weights_sha256"]
    write_scores(dataset, "clip_janus", views, {}, AZIMUTHS, weights_sha256=weights)
    write_scores(dataset, "arcface", {}, {"mean_cosine": [0.9, 0.8, 0.2, nan]}, AZIMUTHS)
    return dataset


def rows_of(dataset: Dataset, name: str) -> dict[tuple[int, int], dict]:
    return {(r["identity"], r["view"]): r for r in read_selection(dataset, name).rows.to_pylist()}


def policy(folder: Path, *rules: dict, **fields) -> str:
    (folder / "policy.json").write_text(json.dumps({"name": "mine", "rules": list(rules), **fields}))
    return str(folder / "policy.json")


def test_the_paper_s_policy_drops_a_view_then_identities(dataset):
    made = select(SelectConfig(dataset.storage.url))
    rows = rows_of(dataset, "gen3d-face")
    assert [v for (i, v), r in rows.items() if i == 1 and not r["keep"]] == [3]
    assert rows[1, 3]["reason"] == "janus: softmax(clip_janus.front, clip_janus.back) above 0.93 (azimuth 120 to 240)"
    assert rows[1, 3]["value"] == pytest.approx(1.0, abs=1e-4)
    # ceil(0.7 * 3) = 3 of the identities that have a number; the one without fails.
    assert [rows[i, WHOLE]["keep"] for i in range(4)] == [True, True, True, False]
    assert rows[3, WHOLE]["reason"] == "consistency: arcface.mean_cosine not among the highest 70 %"
    assert rows[3, WHOLE]["value"] is None
    assert rows[3, 0] == {"identity": 3, "view": 0, "keep": False, "reason": "its identity was dropped", "value": None}
    assert "keeps 3 of 4 identities, 11 of 16 views" in str(made)


def test_the_counts_add_up(dataset, tmp_path):
    rules = ({"name": "janus", "score": {"softmax": ["clip_janus.front", "clip_janus.back"]}, "max": 0.93,
              "where": {"azimuth": [120, 240]}, "drop": "identity"},
             {"name": "agree", "score": "arcface.mean_cosine", "min": 0.85})  # fmt: skip
    summary = select(SelectConfig(dataset.storage.url, policy=policy(tmp_path, *rules))).summary
    assert summary["identities"] == {"judged": 4, "kept": 1, "dropped": 3, "without_views": 0, "incomplete": 0}
    assert summary["views"] == {"judged": 16, "kept": 4, "dropped": 12, "dropped_with_identity": 12}
    janus, agree = summary["rules"]
    assert (janus["judged"], janus["judges"], janus["failing"]) == (8, "views", 1)
    assert (janus["dropped"], janus["drops"]) == (1, "identities")
    assert (agree["failing"], agree["dropped"], agree["alone"], janus["alone"]) == (3, 3, 2, 0)
    assert summary["failed_together"]["identities"] == [
        {"rules": ["agree"], "count": 2},
        {"rules": ["janus", "agree"], "count": 1},
    ]
    assert [(s["azimuth"], s["views"], s["kept"]) for s in summary["sectors"]] == [
        (0, 4, 1), (60, 4, 1), (120, 4, 1), (-180, 4, 1)]  # fmt: skip
    copy = json.loads(dataset.storage.read(selection_file("mine", "summary.json")))
    assert copy == {**summary, "selection_sha256": read_selection(dataset, "mine").fingerprint}


def test_the_same_inputs_give_the_same_bytes(dataset):
    files = [selection_file("gen3d-face", f) for f in ("selection.parquet", "summary.json", "policy.json")]
    first, again = [], []
    for seen in (first, again):
        select(SelectConfig(dataset.storage.url))
        seen += [dataset.storage.read(f) for f in files]
    assert first == again
    assert selections(dataset) == ["gen3d-face"]


def test_decisions_override_and_say_who(dataset):
    log = DecisionLog(dataset.storage, "ann")

    def decide(identity, view, verdict):
        log.append([Decision(identity, view, verdict, "looked", "ann", "2026-11-20T10:00:00.000Z")])

    decide(1, 3, "keep")
    decide(0, 1, "drop")
    decide(3, None, "keep")
    decide(2, None, "drop")
    decide(1, 0, "drop")
    decide(1, 0, "clear")
    summary = select(SelectConfig(dataset.storage.url)).summary
    rows = rows_of(dataset, "gen3d-face")
    assert rows[1, 3]["keep"] and not rows[0, 1]["keep"] and rows[1, 0]["keep"]
    assert rows[0, 1]["reason"] == "decision: ann on 2026-11-20T10:00:00.000Z: drop, looked"
    assert [rows[i, WHOLE]["keep"] for i in range(4)] == [True, True, False, True]
    assert rows[3, WHOLE]["reason"] == "decision: ann on 2026-11-20T10:00:00.000Z: keep, looked"
    counts = {level: summary["decisions"][level] for level in ("identities", "views")}
    assert counts == {"identities": {"keep": 1, "drop": 1}, "views": {"keep": 1, "drop": 1}}


def test_decisions_that_were_removed_since_a_selection_are_missed(dataset):
    log = DecisionLog(dataset.storage, "ann")
    log.append([Decision(i, None, "drop", "r", "ann", now()) for i in range(3)])
    select(SelectConfig(dataset.storage.url))
    lines = dataset.storage.read(log.file).splitlines(keepends=True)
    log.append([Decision(3, None, "drop", "r", "ann", now())])
    select(SelectConfig(dataset.storage.url, name="longer"))
    dataset.storage.write(log.file, b"".join(lines[:2]))
    with pytest.raises(UserError, match=r"lacks lines that it had when selection gen3d-face was made; restore it"):
        select(SelectConfig(dataset.storage.url, name="third"))


def test_a_selection_is_one_commit(dataset):
    """The rows, the policy and the summary are in one file; the two JSON files are copies."""
    made = select(SelectConfig(dataset.storage.url))
    for copy in ("policy.json", "summary.json"):
        dataset.storage.remove(selection_file("gen3d-face", copy))
    found = read_selection(dataset, "gen3d-face")
    assert found.policy == read_policy("gen3d-face")[1]
    assert found.summary == made.summary


def test_diff_lists_what_flips_and_why(dataset, tmp_path):
    select(SelectConfig(dataset.storage.url))
    strict = policy(tmp_path, {"name": "agree", "score": "arcface.mean_cosine", "min": 0.5})
    select(SelectConfig(dataset.storage.url, policy=strict, name="strict"))
    lines = diff(dataset, "gen3d-face", "strict")
    assert lines[0].startswith("identity 1 view 3: kept in strict; gen3d-face drops it by janus: softmax")
    assert "identity 2: dropped in strict; strict drops it by agree: arcface.mean_cosine below 0.5 (0.2)" in lines
    assert diff(dataset, "strict", "strict") == []
    with pytest.raises(ValueError, match=r"no selection 'loose' \(selections: gen3d-face, strict\)"):
        diff(dataset, "loose", "strict")


def test_nothing_left_is_said_and_written(dataset, tmp_path):
    nobody = policy(tmp_path, {"name": "r", "score": "arcface.mean_cosine", "min": 2})
    made = select(SelectConfig(dataset.storage.url, policy=nobody))
    assert made.summary["identities"]["kept"] == 0
    assert "nothing is left" in str(made)
    assert not any(r["keep"] for r in rows_of(dataset, "mine").values())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"score": "mesh.iou"}, r"no scores of 'mesh' \(tables: arcface, clip_janus\); run spinset score"),
        ({"score": "arcface.cosine"}, "have no column 'cosine'; they have mean_cosine"),
        ({"score": "arcface.view"}, "arcface.view is not a score; the scores of arcface are mean_cosine"),
        (
            {"score": "clip_janus.azimuth"},
            "clip_janus.azimuth is not a score; the scores of clip_janus are front, back",
        ),
        ({"score": "clip_janus.front"}, "judges all views, but clip_janus.front was not scored for 8 of those views"),
    ],
)
def test_scores_that_are_not_there(dataset, tmp_path, rule, message):
    with pytest.raises(ValueError, match=message):
        select(SelectConfig(dataset.storage.url, policy=policy(tmp_path, {"name": "r", "max": 1, **rule})))


def test_scores_older_than_the_shards(dataset):
    commit(dataset.storage, 1, sha256="new")
    with pytest.raises(ValueError, match=r"scores/clip_janus.parquet is older than shards 1"):
        select(SelectConfig(dataset.storage.url))


def test_required_lineage(dataset, tmp_path):
    rule = {"name": "r", "score": "arcface.mean_cosine", "min": 0}
    select(SelectConfig(dataset.storage.url, policy=policy(tmp_path, rule, requires={"clip_janus": {"version": 1}})))
    with pytest.raises(
        ValueError, match="belong to arcface with weights_sha256 'ab', and the scores were made with None"
    ):
        select(
            SelectConfig(
                dataset.storage.url, policy=policy(tmp_path, rule, requires={"arcface": {"weights_sha256": "ab"}})
            )
        )


def test_tables_of_different_heads_do_not_join(dataset):
    write_scores(dataset, "arcface", {}, {"mean_cosine": [0.9] * 4}, AZIMUTHS[:3])
    with pytest.raises(ValueError, match="clip_janus and arcface hold different heads"):
        select(SelectConfig(dataset.storage.url))


def test_a_selection_of_another_dataset_is_refused(dataset, tmp_path):
    select(SelectConfig(dataset.storage.url))
    other = bare_dataset(tmp_path / "other", per_shard=4)
    other.storage.write(selection_file("s"), dataset.storage.read(selection_file("gen3d-face")))
    with pytest.raises(ValueError, match="was made for another dataset"):
        read_selection(other, "s")


def test_bad_names():
    with pytest.raises(ValueError, match=r"--name is '../x'"):
        SelectConfig("out", name="../x")


def test_rows_are_in_order(dataset):
    select(SelectConfig(dataset.storage.url))
    rows = read_selection(dataset, "gen3d-face").rows
    keys = list(zip(rows["identity"].to_pylist(), rows["view"].to_pylist(), strict=True))
    assert keys == sorted(keys)
    assert np.unique(rows["view"].to_numpy()).tolist() == [-1, 0, 1, 2, 3]
