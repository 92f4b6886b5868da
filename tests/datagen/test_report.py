"""The map of views on a page: axes in degrees that enclose every view."""

import re
from xml.etree import ElementTree

from egg import egg_job

from datagen.generate import generate
from datagen.report import sections
from jobs.pool import PoolConfig


def test_the_map_of_views_has_axes_in_degrees(tmp_path):
    dataset = generate(egg_job(str(tmp_path / "heads"), PoolConfig(inline=True), identities=2))
    rig = next(section.body for section in sections(dataset) if section.title == "Rig")
    views = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", rig, re.DOTALL)[1])
    texts = {text.text for text in views.findall(".//{*}text")}
    assert {"azimuth (degrees)", "elevation (degrees)", "0\N{DEGREE SIGN}", "20\N{DEGREE SIGN}"} <= texts
    width, height = map(float, views.attrib["viewBox"].split()[2:])
    dots = [(float(dot.attrib["x"]), float(dot.attrib["y"])) for dot in views.findall(".//{*}g[@clip-path]/{*}use")]
    assert len(dots) == 2 * 6 + 6
    assert all(64 < x < width - 64 and 20 < y < height - 44 for x, y in dots)
