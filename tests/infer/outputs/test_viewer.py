"""The page that turns a head: one file, no requests, and hands that turn it in a real browser."""

import base64
import io
import os
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from chromium import CHROMIUM, NOT_THERE
from PIL import Image
from turns import ball_turn

from infer.outputs.pictures import place, viewer
from train.batch import to_bytes


class Page(HTMLParser):
    """The tags of a page, in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def turn():
    """Two rows of four, counted to 360."""
    return ball_turn([0, 90, 180, 270] * 2, [0] * 4 + [30] * 4, 32)


@pytest.fixture(scope="module")
def html(turn) -> str:
    return viewer(turn, "A <head> & more")


def test_every_view_is_inside(turn, html):
    images = Page(html).all("img")
    assert [image["class"] for image in images] == ["rgb on", "normal"] + ["rgb", "normal"] * 7
    for member, views in enumerate((turn.rgb, turn.normal)):
        for image, view in zip(images[member::2], views, strict=True):
            head, _, data = (image["src"] or "").partition(",")
            assert head == "data:image/webp;base64"
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
            assert np.abs(pixels - to_bytes(view)).mean() < 6
    angles = [(float(i["data-azimuth"] or ""), float(i["data-elevation"] or "")) for i in images[::2]]
    assert angles == [(a, e) for e in (0, 30) for a in (0, 90, -180, -90)]


def test_nothing_is_asked_of_anyone(html):
    without = re.sub(r"data:image/webp;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|<link|<iframe|src=\"[^\"]", without)
    policy = next(meta for meta in Page(html).all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none'; img-src data:;")


def test_it_speaks_to_those_who_do_not_see_it(html):
    page = Page(html)
    alts = [image["alt"] for image in page.all("img")]
    assert alts[:4] == ["the head, front", "normals of the head, front"] + [
        f"{kind}the head, 90 degrees to the left" for kind in ("", "normals of ")
    ]
    assert all(button.get("aria-pressed") for button in page.all("button"))
    (slider,) = page.all("input")
    assert slider["aria-label"] and page.all("html")[0]["lang"] == "en"
    assert "focus-visible" in html and "prefers-color-scheme: dark" in html and "prefers-reduced-motion" in html


def test_titles_are_escaped(html):
    assert "<title>A &lt;head&gt; &amp; more</title>" in html and "<head>" not in html


def test_a_single_ring_without_normals(turn):
    ring = replace(ball_turn([0, 120, -120], [0, 0, 0], 16), normal=None)
    html = viewer(ring, "ring")
    assert "pan-y" in html and "const levels = []" in html, "a finger that goes up scrolls the page"
    assert 'id="normals"' not in html and 'class="normal"' not in html
    assert "const levels = [0.0, 30.0]" in viewer(turn, "grid")


@pytest.mark.parametrize(
    ("azimuth", "elevation", "words"),
    [
        (0.2, 0, "front"),
        (-180, 0, "back"),
        (45, 10, "45 degrees to the left, 10 up"),
        (-90, -5.1, "90 degrees to the right, 5 down"),
    ],
)
def test_places_in_words(azimuth, elevation, words):
    assert place(float(azimuth), float(elevation)) == words


SCRIPT = """
stage.setPointerCapture = () => {};
const said = [], note = () => said.push(document.querySelector(".stage .on").alt), press = (key) =>
  { document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true })); note(); };
const pointer = (kind, x, y) =>
  stage.dispatchEvent(new PointerEvent(kind, { pointerId: 1, clientX: x, clientY: y, bubbles: true, cancelable: true }));
const drag = (x, y) => { pointer("pointerdown", 0, 0); pointer("pointermove", x, y); pointer("pointercancel", x, y); note(); };
note();
for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft", "Home", "ArrowUp", "ArrowUp", "ArrowDown", "n"]) press(key);
byId("picture").click(); note();
drag(stage.clientWidth * 0.45, 0);
drag(0, stage.clientWidth);
slider.value = 170; slider.dispatchEvent(new Event("input")); note();
byId("play").click(); said.push(byId("play").getAttribute("aria-pressed"));
byId("play").click();
location.hash = "#az=-80&el=0&normals";
setTimeout(() => { note(); document.body.innerHTML = said.map((line) => `<p>${line}</p>`).join(""); }, 50);
"""


@pytest.mark.skipif(CHROMIUM is None, reason=NOT_THERE)
def test_hands_and_keys_turn_it(html, tmp_path):
    file = tmp_path / "viewer.html"
    file.write_text(f"{html}<script>{SCRIPT}</script>")
    command = [str(CHROMIUM), "--headless=new", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    if os.geteuid() == 0:  # where Chromium will not run in its sandbox
        command.append("--no-sandbox")
    command += ["--virtual-time-budget=1000", "--dump-dom", f"{file.as_uri()}#az=85"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    front, left, right = "the head, front", "the head, 90 degrees to the left", "the head, 90 degrees to the right"
    assert re.findall("<p>(.*?)</p>", shown) == [
        *(left, front, right, front, front),
        *(f"{front}, 30 up", f"{front}, 30 up", front, f"normals of {front}"),
        *(front, right, f"{right}, 30 up", "the head, back, 30 up", "true", f"normals of {right}"),
    ]
