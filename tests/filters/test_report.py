"""The page of a selection: counts, histograms with their limits, worst and borderline heads, nothing from outside."""

import json
import re
from dataclasses import dataclass, replace

import pandas as pd
import pytest
from egg import Egg, EggConfig, EggSource, egg_job

from datagen.generate import generate
from filters.config import ScoreConfig, SelectConfig
from filters.decisions import Decision, DecisionLog, now
from filters.report import selection_sections
from filters.score import score
from filters.select import select
from jobs.pool import PoolConfig
from manifests.errors import UserError
from pages.page import page

DEFECTIVE = 1
"""The seed, and the identity, of the egg that has a planted defect."""


class PlantedSource(EggSource):
    def head(self, seed: int) -> Egg:
        egg = super().head(seed)
        defects = [{"kind": "identity_drift", "strength": 0.5}] if seed == DEFECTIVE else []
        return replace(egg, facts_={**egg.facts_, "defects": defects})


@dataclass(frozen=True)
class PlantedConfig(EggConfig):
    def open(self, device: str) -> PlantedSource:
        return PlantedSource(dict(self.faults))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """7 eggs of which the source says what it planted."""
    out = str(tmp_path_factory.mktemp("planted") / "heads")
    return generate(egg_job(out, PoolConfig(inline=True), source=PlantedConfig()))


def selected(dataset, tmp_path, rules):
    """The sections of a selection by some rules, and the page they make."""
    score(ScoreConfig(dataset.storage.url, scorers=("mesh", "image"), pool=PoolConfig(inline=True)))
    policy = tmp_path / "p.json"
    policy.write_text(json.dumps({"name": "mine", "about": "a <b>test</b>", "rules": rules}))
    select(SelectConfig(dataset.storage.url, policy=str(policy)))
    made = selection_sections(dataset, "mine")
    return made, page("Eggs", "", made)


def test_the_page_shows_every_rule(eggs, tmp_path):
    rules = [
        {"name": "blank", "score": "image.contrast", "min": 0.001, "where": {"azimuth": [120, 240]}},
        {"name": "sharp<", "score": "image.back_sharpness", "keep_top": 0.5},
        {"name": "above", "score": "image.contrast", "min": 0.001, "where": {"elevation": [80, 90]}},
        {"name": "pieces", "score": "mesh.components", "max": 0},
    ]
    made, html = selected(eggs, tmp_path, rules)
    assert [s.title for s in made] == ["Selection mine", "Scores and limits"]
    for expected in (
        "blank: image.contrast below 0.001",
        "sharp&lt;: ",
        "Nothing is left",
        "a &lt;b&gt;test",
        "identity 6",
        "No score: nothing is drawn.",
    ):
        assert expected in html, expected
    drawn = re.findall(r'aria-label="([^:]+): ', html)
    assert drawn == ["blank", "sharp&lt;", "pieces"], "a rule that judges nothing has no empty chart"
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "sound" not in made[0].body, "eggs do not say what is planted in them"
    assert "<b" not in re.sub("<br>", "", made[1].body.split("</style>")[1]), "so no head is marked"


def test_a_chart_has_axes_units_and_its_limit(eggs, tmp_path):
    rules = [
        {"name": "between", "score": "image.contrast", "min": 0.004, "where": {"azimuth": [-60, 60]}},
        {"name": "top", "score": "image.coverage", "keep_top": 0.5},
        {"name": "pieces", "score": "mesh.components", "max": 3},
    ]
    _, html = selected(eggs, tmp_path, rules)
    scores = pd.read_parquet(eggs.storage.path("scores/image.parquet"))
    kept = scores[scores.view >= 0].coverage.nlargest(21).min()
    for text in (
        "views (log scale)",
        "identities (log scale)",
        "image.contrast: standard deviation of the luminance within the head, 0 to 1",
        "mesh.components: number of pieces of the mesh that are more than dust",
        "min 0.004",
        f"min {kept:.4g}",
        "max 3",
    ):
        assert f">{text}</text>" in html, text


def test_the_bars_of_every_rule_add_up_to_its_tally(eggs, tmp_path):
    """The page draws what `select` judged: after rules that drop heads, with equal scores at a limit, and with decisions."""
    score(ScoreConfig(eggs.storage.url, scorers=("mesh", "image"), pool=PoolConfig(inline=True)))
    rules = [
        {"name": "small", "score": "image.coverage", "min": 0.4, "drop": "identity", "max_failing": 2},
        {"name": "equal", "score": "mesh.components", "keep_top": 0.5},
        {"name": "sharp", "score": "image.sharpness", "keep_top": 0.6},
        {"name": "bright", "score": "image.contrast", "keep_bottom": 0.5, "where": {"azimuth": [-60, 120]}},
    ]
    policy = tmp_path / "bars.json"
    policy.write_text(json.dumps({"name": "bars", "rules": rules}))
    config = SelectConfig(eggs.storage.url, policy=str(policy))
    undecided = select(config).summary["rules"]
    verdicts = ((0, "keep"), (1, "drop"))
    made = [Decision(i, view, verdict, "looked", "ann", now()) for i in range(7) for view, verdict in verdicts]
    DecisionLog(eggs.storage, "ann").append(made)
    with pytest.raises(
        UserError, match="selection bars is older than its scores or decisions; run spinset select again"
    ):
        selection_sections(eggs, "bars")
    summary = select(config).summary
    assert summary["rules"] != undecided, "the decisions change what the rules judge"
    assert all(0 < rule["failing"] < rule["judged"] for rule in summary["rules"])
    html = page("Eggs", "", selection_sections(eggs, "bars"))
    drawn = re.findall(r'aria-label="(\w+): [^"]*: (\d+) of (\d+) ', html)
    assert drawn == [(rule["name"], str(rule["failing"]), str(rule["judged"])) for rule in summary["rules"]]


def test_a_sound_head_that_is_dropped_is_marked(planted, tmp_path):
    score(ScoreConfig(planted.storage.url, scorers=("image",), pool=PoolConfig(inline=True)))
    scores = pd.read_parquet(planted.storage.path("scores/image.parquet"))
    smallest = scores[scores.view >= 0].groupby("identity").coverage.min().sort_values()
    fails, limit = set(smallest.index[:4]), float(smallest.iloc[3:5].mean())
    rule = {"name": "small", "score": "image.coverage", "min": limit, "drop": "identity"}
    made, html = selected(planted, tmp_path, [rule])
    sound = sorted(fails - {DEFECTIVE})
    assert "The truth is known for 7 identities: 6 sound heads, 1 with planted defects." in made[0].body
    listed = re.findall(r"<li class=\"warn\">identity (\d+), sound head, dropped: small: ", made[0].body)
    assert [int(identity) for identity in listed] == sound and sound
    assert DEFECTIVE in fails and "Kept with a planted defect" not in made[0].body
    named = ", ".join(map(str, sound))
    assert f"Sound heads that fail this rule with at least one view: {len(sound)} (identity {named})." in html
    marked = re.findall(r'<figure class="wrong">.*?<figcaption>identity (\d+) view \d+<br>(.*?)</figcaption>', html)
    assert {int(identity) for identity, _ in marked} == set(sound)
    assert all('<b class="warn">sound head</b>' in caption for _, caption in marked)
    made, _ = selected(planted, tmp_path, [{**rule, "min": 0.0}])
    assert "No sound head is dropped." in made[0].body
    assert "Kept with a planted defect: identity 1 (identity drift 0.50)." in made[0].body
