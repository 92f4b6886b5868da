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
    root = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", rig.replace("&deg;", "\u00b0"), re.DOTALL)[1])
    texts = [text.text for text in root.iter("text")]
    assert "azimuth (degrees)" in texts and "elevation (degrees)" in texts
    assert {"-180\u00b0", "0\u00b0", "180\u00b0", "-20\u00b0", "20\u00b0"} <= set(texts)
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    dots = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter("circle")]
    assert len(dots) == 2 * 6 + 6
    assert all(left < x < left + width and top < y < top + height for x, y in dots)
