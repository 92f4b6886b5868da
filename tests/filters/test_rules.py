"""Policies are read strictly: whatever is wrong with one is said in one line."""

import json
from dataclasses import asdict

import pytest

from filters.config import ClipConfig
from filters.policies import PRESETS
from filters.rules import Sector, Softmax, parse_policy, read_policy
from filters.scorers.clip_janus import ClipScorer
from filters.scorers.image import ImageScorer
from filters.scorers.mesh import MeshScorer
from manifests.errors import UserError

RULE = {"name": "fog", "score": "image.fog", "max": 0.05}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_read(preset):
    policy, document = read_policy(preset)
    assert policy.name == preset == document["name"]
    assert policy.about


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_declare_what_their_limits_belong_to(preset):
    """The scorers as they are now, with the embedded weights: whoever changes one must set the limits again."""
    policy, _ = read_policy(preset)
    scorers = (MeshScorer(), ImageScorer(), ClipScorer(ClipConfig(), "cpu"))
    lineages = {scorer.table: scorer.lineage for scorer in scorers}
    limited = {c.partition(".")[0] for rule in policy.rules if not rule.is_quantile for c in rule.columns}
    assert policy.requires.keys() == limited
    for table, pins in policy.requires.items():
        lineage = asdict(lineages[table])
        assert pins == {name: lineage[name] for name in pins}
        assert pins.keys() & {"weights_sha256", "version"}


def test_the_paper_s_policy_is_the_paper_s():
    janus, consistency = read_policy("gen3d-face")[0].rules
    assert (janus.max, janus.where, janus.drop) == (0.93, Sector(azimuth=(120.0, 240.0)), "view")
    assert janus.score == Softmax(("clip_janus.front", "clip_janus.back"), 100.0)
    assert (consistency.score, consistency.keep_top) == ("arcface.mean_cosine", 0.7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max": "high"}, 'rule 1 .fog.: max is "high"; input should be a valid number'),
        ({"max": True}, "max is true; input should be a valid number"),
        ({"max": None}, "must have min and/or max, or keep_top, or keep_bottom"),
        ({"keep_top": 0.7}, "must have min and/or max, or keep_top, or keep_bottom"),
        ({"max": None, "keep_top": 1.2}, "keep_top is 1.2; input should be less than or equal to 1"),
        ({"max": None, "keep_bottom": -0.1}, "keep_bottom is -0.1"),
        ({"min": 1}, "rule 1 .fog.: min 1 is above max 0.05, so nothing passes"),
        ({"score": "fog"}, 'score is "fog"; a score is written table.column, as arcface.mean_cosine'),
        ({"score": {"softmax": ["a.b"]}}, "score.softmax is .*; a softmax has two columns or more"),
        ({"score": {"softmax": ["a.b", "a.c"], "scale": 0}}, "scale is 0"),
        ({"score": {"softmin": []}}, "unknown field 'score.softmin'; there are softmax, scale"),
        ({"where": {"azimuth": [120]}}, r"where.azimuth is \[120\]; a range is \[from, to\]"),
        ({"where": {"azimuth": [240, 120]}}, r"where.azimuth is \[240, 120\]; a range is"),
        ({"where": {"roll": [0, 1]}}, "unknown field 'where.roll'; there are azimuth, elevation"),
        ({"drop": "both"}, "drop is \"both\"; input should be 'view' or 'identity'"),
        ({"max_failing": 2}, "max_failing needs drop = identity"),
        ({"drop": "identity", "max_failing": 1, "min_passing": 3}, "at most one of max_failing and min_passing"),
        ({"drop": "identity", "min_passing": 2.5}, "min_passing is 2.5; input should be a valid integer"),
        ({"threshold": 1}, "rule 1 .fog. has an unknown field 'threshold'; there are name, score, min"),
        ({"score": None}, "rule 1 .fog. has no score"),
        ({"max": float("nan")}, "max is NaN; input should be a finite number"),
        ({"name": ""}, 'rule 1: name is ""; string should have at least 1 character'),
    ],
)
def test_bad_rules_are_named(change, message):
    rule = {k: v for k, v in {**RULE, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        parse_policy({"name": "p", "rules": [rule]})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "the policy: input should be an object"),
        ({"name": "p", "rules": []}, r"rules is \[\]; a policy has 1 to 60 rules"),
        ({"name": "p/q", "rules": [RULE]}, 'name is "p/q"; string should match pattern'),
        ({"name": "p", "rules": [RULE, RULE]}, "two rules are called 'fog'"),
        (
            {"name": "p", "rules": [RULE], "requires": ["arcface"]},
            r"requires is \[\"arcface\"\]; input should be an object",
        ),
        (
            {"name": "p", "rules": [RULE], "whole_identities": 1},
            "whole_identities is 1; input should be a valid boolean",
        ),
        (
            {"name": "p", "rules": [RULE], "author": "me"},
            "the policy has an unknown field 'author'; there are name, rules",
        ),
        ({"name": "p", "rules": ["fog"]}, "rule 1: input should be an object"),
        ({"name": "p"}, "the policy has no rules"),
    ],
)
def test_bad_documents_are_named(document, message):
    with pytest.raises(ValueError, match=message):
        parse_policy(document)


def test_a_policy_that_is_not_there_or_not_json(tmp_path):
    with pytest.raises(ValueError, match=r"neither a preset .gen3d-face.* nor a file"):
        read_policy("gen3d")
    file = tmp_path / "p.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_policy(str(file))
    file.write_text(json.dumps({"name": "p", "rules": [{**RULE, "max": "x"}]}))
    with pytest.raises(ValueError, match=r"policy .*p.json: rule 1 \(fog\): max"):
        read_policy(str(file))


def test_a_key_that_stands_twice_is_refused(tmp_path):
    file = tmp_path / "p.json"
    file.write_text('{"name": "p", "rules": [{"name": "fog", "score": "image.fog", "max": 0.5, "max": -1}]}')
    with pytest.raises(UserError, match="the key 'max' occurs twice in one object"):
        read_policy(str(file))


def test_a_byte_order_mark_is_read_and_other_encodings_are_refused(tmp_path):
    file, text = tmp_path / "p.json", json.dumps({"name": "p", "rules": [RULE]})
    file.write_text(text, encoding="utf-8-sig")
    assert read_policy(str(file))[0].name == "p"
    file.write_bytes(text.encode("utf-16"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_policy(str(file))
