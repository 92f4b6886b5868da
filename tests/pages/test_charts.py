"""Charts of a page: bars that are never of both kinds, limits at their values, and SVG of which many stand in one page."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from pages.charts import bins, curve, histogram

VALUES = np.random.default_rng(0).random(500).astype(np.float32)
STEPS = np.arange(10.0, 2000, 10)
LOSS = np.stack([STEPS, 0.3 + 8 * np.exp(-STEPS / 200)], 1)


def points(path):
    return np.array(re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"]), float)


@pytest.mark.parametrize(
    ("values", "limits", "label", "drawn"),
    [
        (VALUES, (0.004, np.inf), "min 0.004", 0.004),
        (VALUES, (-np.inf, 0.93), "max 0.93", 0.93),
        (VALUES / 100, (-np.inf, 0.0093), "max 0.0093", 0.0093),
        (np.array([1, 1, 2, 7], np.float32), (-np.inf, 3.0), "max 3", 3.5),
    ],
)
def test_a_limit_is_where_the_ticks_say(values, limits, label, drawn):
    """Of whole numbers it is between the last that passes and the first that fails."""
    failing = (values < np.float32(limits[0])) | (values > np.float32(limits[1]))
    root = ElementTree.fromstring(histogram("a rule", "score, 0 to 1", "views", values, failing, *limits))
    found = {text.text: text for text in root.findall(".//{*}text")}
    assert {"score, 0 to 1", "views (log scale)", "0", "1"} <= found.keys()
    assert root.attrib["aria-label"] == f"a rule: {failing.sum()} of {len(values)} views fail" and failing.any()
    (line,) = (points(path)[0, 0] for path in root.findall(".//{*}path") if "dasharray" in path.attrib["style"])
    assert float(found[label].attrib["x"]) == pytest.approx(line)
    ticks = root.findall(".//{*}g[@class='matplotlib.axis_1']/{*}g/{*}g/{*}text")
    assert len(ticks) >= 4
    slope, start = np.polyfit(*zip(*((float(tick.attrib["x"]), float(tick.text)) for tick in ticks), strict=True), 1)
    assert start + slope * line == pytest.approx(drawn, rel=1e-4)


@pytest.mark.parametrize(("low", "high"), [(-np.inf, 0.5), (-np.inf, 0.93), (-np.inf, 2.0), (0.7, np.inf), (0.2, 0.7)])
def test_no_bar_mixes_passing_and_failing(low, high):
    """Scores that equal a limit pass, as 32-bit numbers: 0.7 is smaller as such than as 64 bits."""
    values = VALUES.copy()
    values[:20], values[20:40] = min(high, 1), max(low, 0)
    failing = (values > np.float32(high)) | (values < np.float32(low))
    edges, passed, failed, limits = bins(values, failing, low, high)
    assert (passed.sum(), failed.sum()) == ((~failing).sum(), failing.sum())
    assert not (passed * failed).any()
    assert np.diff(edges).min() > np.diff(edges).max() / 6, "no bar is too narrow to see"
    assert limits == (low, high)
    assert all(np.abs(edges - limit).min() < 1e-6 for limit in limits if np.isfinite(limit))


def test_equal_scores_of_which_a_share_passes_are_two_bars():
    failing = np.array([False, False, True])
    svg = histogram("share", "score", "views", np.full(3, 0.5, np.float32), failing, 0.5, np.inf)
    paths = ElementTree.fromstring(svg).findall(".//{*}path[@clip-path]")
    passing, fails = (points(p) for p in paths if p.attrib["style"].startswith(("fill: var(--accent)", "fill: url(")))
    assert passing[:, 0].max() == pytest.approx(fails[:, 0].min()), "side by side"


def test_whole_numbers_have_a_bar_each():
    values = np.array([0, 0, 0, 1, 2, 2], np.float32)
    edges, passed, failed, _ = bins(values, values > 0, -np.inf, 0.0)
    assert np.stack([edges[:-1] + 0.5, passed, failed]).tolist() == [[0, 1, 2, 3], [3, 0, 0, 0], [0, 1, 2, 0]]


@pytest.mark.parametrize(("rows", "scale", "dots"), [(LOSS, " (log scale)", 0), (LOSS[50:], "", 0), (LOSS[-8:], "", 8)])
def test_a_curve_fills_its_frame(rows, scale, dots):
    svg = curve("loss", "samples seen", "loss", rows)
    assert ">samples seen<" in svg and f">loss{scale}<" in svg
    root = ElementTree.fromstring(svg)
    (line,) = (
        points(p) for p in root.findall(".//{*}path[@clip-path]") if "stroke: var(--accent)" in p.attrib["style"]
    )
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert np.ptp(line, 0) == pytest.approx([width - 128, height - 64], rel=0.1)
    assert len(root.findall(".//{*}g[@clip-path]/{*}use")) == dots


def test_charts_stand_in_a_page():
    """Equal charts are equal bytes, ids are unique, and the colours and the font are the page's."""

    failing = np.float32(0.5) < VALUES
    one, same, two = (histogram(x, "$a < b$", "views", VALUES, failing, 0.0, 0.5) for x in ("one", "one", "two"))
    assert one == same
    page = one + two + curve("<loss>", "samples", "loss", LOSS)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r"(?:url\(|href=\")#([^\")]+)", page)) <= set(ids)
    assert page.count('role="img"') == 3 and 'aria-label="&lt;loss&gt;"' in page
    assert "$a &lt; b$" in page, "text is text"
    colours = set(re.findall(r"(?:fill|stroke)(?:: |=\")([^;\"]+)", re.sub(r"url\(#h\w+\)", "none", page)))
    assert colours == {"none", *(f"var(--{name})" for name in ("accent", "line", "paper", "soft", "warn"))}
    assert set(re.findall(r"font-family: ([^;\"]+)", page)) == {"system-ui, sans-serif"}
    assert not re.search(r"<style|<metadata|<\?xml", page)
