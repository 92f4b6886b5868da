"""The page of a selection: counts, histograms whose limits are edges, worst and borderline heads, nothing from outside."""

import json
import re
from dataclasses import dataclass, replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from egg import Egg, EggConfig, EggSource, egg_job

from datagen.generate import generate
from filters.config import ScoreConfig, SelectConfig
from filters.decisions import Decision, DecisionLog, now
from filters.report import histogram, selection_sections
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


def charts(html):
    """The histograms of a page, by rule: their texts with places, their lines, and their bars."""
    found = {}
    for svg in re.findall(r"<svg viewBox.*?</svg>", html, re.DOTALL):
        root = ElementTree.fromstring(svg)
        found[root.attrib["aria-label"].removeprefix("histogram of ").split(":")[0]] = root
    return found


def texts(root):
    return {"".join(text.itertext()): text for text in root.iter("text")}


def value_at_limit(root):
    """The value of the dashed line on the horizontal axis, read off the ticks as a person would."""
    x = next(float(line.attrib["x1"]) for line in root.iter("line") if "stroke-dasharray" in line.attrib)
    ticks = [
        (float(t.attrib["x"]), float("".join(t.itertext()))) for t in root.iter("text") if t.attrib.get("y") == "139"
    ]
    assert len(ticks) >= 2
    slope, start = np.polyfit([place for place, _ in ticks], [value for _, value in ticks], 1)
    return start + slope * x


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
    assert charts(html).keys() == {"blank", "sharp<", "pieces"}, "a rule that judges nothing has no empty chart"
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "sound" not in made[0].body, "eggs do not say what is planted in them"
    assert "<b" not in re.sub("<br>", "", made[1].body.split("</style>")[1]), "so no head is marked"


def test_a_chart_has_axes_units_and_its_limit_at_its_line(eggs, tmp_path):
    rules = [
        {"name": "between", "score": "image.contrast", "min": 0.004, "where": {"azimuth": [-60, 60]}},
        {"name": "top", "score": "image.coverage", "keep_top": 0.5},
        {"name": "pieces", "score": "mesh.components", "max": 3},
    ]
    _, html = selected(eggs, tmp_path, rules)
    found = charts(html)
    assert "views (log scale)" in texts(found["between"])
    assert "identities (log scale)" in texts(found["pieces"])
    assert "image.contrast: standard deviation of the luminance within the head, 0 to 1" in texts(found["between"])
    assert "mesh.components: number of pieces of the mesh that are more than dust" in texts(found["pieces"])
    assert "min 0.004" in texts(found["between"]) and "max 3" in texts(found["pieces"])
    assert value_at_limit(found["between"]) == pytest.approx(0.004, abs=1e-5)
    assert value_at_limit(found["pieces"]) == pytest.approx(3.5), (
        "between the last that passes and the first that fails"
    )
    scores = pd.read_parquet(eggs.storage.path("scores/image.parquet"))
    kept = scores[scores.view >= 0].coverage.nlargest(21).min()
    assert f"min {kept:.4g}" in texts(found["top"])
    assert value_at_limit(found["top"]) == pytest.approx(kept, rel=1e-4)
    for root in found.values():
        label = next(text for name, text in texts(root).items() if name.startswith(("min", "max")))
        line = next(line for line in root.iter("line") if "stroke-dasharray" in line.attrib)
        assert label.attrib["x"] == line.attrib["x1"] == line.attrib["x2"]
        bars = [float(bar.attrib["height"]) for bar in root.iter("rect")]
        assert max(bars) == 100, "no blank chart"


def test_equal_scores_of_which_a_share_passes_are_two_bars():
    failing = np.array([False, False, True])
    found = histogram(np.full(3, 0.5, np.float32), failing, 0.5, np.inf)
    assert [(bar.count, bar.fails) for bar in found.bars] == [(2, False), (1, True)]
    assert found.bars[0].x + found.bars[0].width == pytest.approx(found.bars[1].x)


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
    found = charts(page("Eggs", "", selection_sections(eggs, "bars")))
    for rule in summary["rules"]:
        titles = ["".join(title.itertext()).split() for title in found[rule["name"]].iter("title")]
        counts = {word: sum(int(n) for n, _, said in titles if said == word) for word in ("pass", "fail")}
        assert counts == {"pass": rule["judged"] - rule["failing"], "fail": rule["failing"]}, rule["name"]


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


@pytest.mark.parametrize(("low", "high"), [(-np.inf, 0.5), (-np.inf, 0.93), (-np.inf, 2.0), (0.7, np.inf), (0.2, 0.7)])
def test_no_bar_mixes_passing_and_failing(low, high):
    """Scores that equal a limit pass, as 32-bit numbers: 0.7 is smaller as such than as 64 bits."""
    values = np.random.default_rng(0).random(500).astype(np.float32)
    values[:20], values[20:40] = min(high, 1), max(low, 0)
    found = histogram(values, (values > np.float32(high)) | (values < np.float32(low)), low, high)
    assert sum(bar.count for bar in found.bars) == 500
    assert len({bar.x for bar in found.bars}) == len(found.bars), "no interval holds both"
    edges = np.array([(bar.x, bar.x + bar.width) for bar in sorted(found.bars, key=lambda bar: bar.x)])
    assert (edges[1:, 0] >= edges[:-1, 1] - 1e-9).all()
    assert sum(bar.count for bar in found.bars if bar.fails) == ((values > high) | (values < low)).sum()
    assert max(bar.height for bar in found.bars) == 1
    assert [mark.text for mark in found.limits] == [
        f"{name} {x:g}" for name, x in (("min", low), ("max", high)) if np.isfinite(x)
    ]
    assert all(0 <= mark.at <= 100 for mark in (*found.limits, *found.scores, *found.counts))


def test_equal_scores_are_one_bar():
    found = histogram(np.full(5, 0.3, np.float32), np.zeros(5, bool), 0.0, 1.0)
    assert [bar.count for bar in found.bars] == [5]
    assert [(mark.at, mark.text) for mark in found.limits] == [(0.0, "min 0"), (100.0, "max 1")]


def test_whole_numbers_have_a_bar_each():
    values = np.array([0, 0, 0, 1, 2, 2], np.float32)
    found = histogram(values, values > 0, -np.inf, 0.0)
    assert [(bar.x, bar.width, bar.count, bar.fails) for bar in found.bars] == [
        (0, 25, 3, False),
        (25, 25, 1, True),
        (50, 25, 2, True),
    ]
    assert [(mark.at, mark.text) for mark in found.scores] == [(12.5, "0"), (37.5, "1"), (62.5, "2"), (87.5, "3")]
    assert [(mark.at, mark.text) for mark in found.limits] == [(25, "max 0")]
