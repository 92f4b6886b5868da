"""The losses of a run on a page: curves, and a sentence for a single value."""

import json
import re

from pages.page import page
from train.run.report import logged, sections


def test_the_last_finite_value_of_a_step_counts():
    lines = [
        {"samples": 8, "loss": float("nan")},
        {"samples": 9, "loss": 9},
        {"samples": 9, "loss": 0},
        {"samples": 10},
    ]
    assert logged(lines, "loss").tolist() == [[9, 0]]
    assert not len(logged(lines[:1], "loss"))


def test_a_single_value_is_a_sentence(tmp_path):
    lines = [{"samples": 8, "loss": 1.0}, {"samples": 16, "loss": 0.5}, {"samples": 16, "validation/loss": 0.3}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.json").write_text(json.dumps({"loader": {"batch": 8}}))
    html = page("Run", "", sections(tmp_path))
    assert re.findall(r'<svg [^>]*aria-label="([^"]*)"', html) == ["loss from 1.000 to 0.500"]
    assert ">loss, no unit<" in html and ">samples seen<" in html
    assert "<h3>validation loss</h3>" in html and "One value: 0.300." in html
