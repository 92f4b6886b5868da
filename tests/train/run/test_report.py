"""The curves of a run on a page: axes with numbers and titles, and a visible mark for a single value."""

import json
import re
from xml.etree import ElementTree

from pages.page import page
from train.run.report import curve, sections


def test_a_curve_is_drawn_on_axes_from_zero():
    lines = [{"samples": 8, "loss": 1.5}, {"samples": 16, "loss": 9.0}, {"samples": 16, "loss": 0.75}, {"samples": 20}]
    found = curve(lines, "loss")
    assert found is not None
    assert found.samples == [(0, "0"), (25, "5"), (50, "10"), (75, "15"), (100, "20")]
    assert found.values == [(0, "0"), (33.33, "0.5"), (66.67, "1"), (100, "1.5")]
    assert found.points == [(40, 100), (80, 50)], "the step taken twice counts as it was taken last"
    assert (found.first, found.last) == (1.5, 0.75)


def test_nothing_finite_is_no_curve():
    assert curve([{"samples": 8}], "loss") is None
    assert curve([{"samples": 8, "loss": float("nan")}], "loss") is None
    zero = curve([{"samples": 8, "loss": float("nan")}, {"samples": 16, "loss": 0.0}], "loss")
    assert zero is not None and zero.points == [(80, 0)]


def test_a_single_value_is_not_a_blank_chart(tmp_path):
    lines = [{"samples": 8, "loss": 1.0}, {"samples": 16, "loss": 0.5}, {"samples": 16, "validation/loss": 0.3}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.json").write_text(json.dumps({"loader": {"batch": 8}}))
    html = page("Run", "", sections(tmp_path))
    loss, validation = (ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert len(list(loss.iter("circle"))) == 2 and len(list(validation.iter("circle"))) == 1
    assert "One value: 0.300." in html
    for chart, name in ((loss, "loss"), (validation, "validation loss")):
        texts = [text.text for text in chart.iter("text")]
        assert f"{name} (no unit)" in texts and "samples seen" in texts
