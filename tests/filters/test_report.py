"""The page of a selection: counts, histograms whose limits are edges, worst and borderline heads, nothing from outside."""

import json
import re

import numpy as np
import pytest

from filters.report import histogram, sections
from filters.score import ScoreConfig, score
from filters.select import SelectConfig, select
from jobs.page import page
from jobs.pool import PoolConfig


def test_the_page_shows_every_rule(eggs, tmp_path):
    score(ScoreConfig(eggs.storage.url, scorers=("mesh", "image"), pool=PoolConfig(inline=True)))
    rules = [
        {"name": "blank", "score": "image.contrast", "min": 0.001, "where": {"azimuth": [120, 240]}},
        {"name": "sharp<", "score": "image.back_sharpness", "keep_top": 0.5},
        {"name": "pieces", "score": "mesh.components", "max": 0},
    ]
    policy = tmp_path / "p.json"
    policy.write_text(json.dumps({"name": "mine", "about": "a <b>test</b>", "rules": rules}))
    select(SelectConfig(eggs.storage.url, policy=str(policy)))
    made = sections(eggs, "mine")
    assert [s.title for s in made] == ["Selection mine", "Scores and limits"]
    html = page("Eggs", "", made)
    for expected in (
        "blank: image.contrast below 0.001",
        "sharp&lt;: ",
        "Nothing is left",
        "a &lt;b&gt;test",
        "identity 6",
    ):
        assert expected in html, expected
    assert html.count("<svg viewBox") == 3
    assert not re.search(r'(src|href)="(?!data:|#)', html)


@pytest.mark.parametrize("high", [0.5, 0.93, 2.0])
def test_no_bar_mixes_passing_and_failing(high):
    values = np.random.default_rng(0).random(500).astype(np.float32)
    values[:20] = high
    bars = histogram(values, -np.inf, high)
    assert sum(bar.count for bar in bars) == 500
    assert sum(bar.count for bar in bars if bar.fails) == (values > high).sum()
    assert max(bar.height for bar in bars) == 1


def test_equal_scores_are_one_bar_and_none_are_none():
    assert [bar.count for bar in histogram(np.full(5, 0.3, np.float32), 0.0, 1.0)] == [5]
    assert histogram(np.empty(0, np.float32), 0.0, 1.0) == []
