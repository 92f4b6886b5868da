"""The page in a browser: every limit, picture and verdict of a curator, on a dataset that was really generated."""

import json
import re
from functools import partial

import numpy as np
import pytest
from review_server import open_page, serving

from filters.config import SelectConfig
from filters.decisions import Decision, DecisionLog, now, read_decisions, standing
from filters.policy import Decisions, judge
from filters.rules import parse_policy
from filters.select import column_of, heads_of, open_tables, select
from manifests.scores import WHOLE
from manifests.selection import read_selection, selection_file
from spinset import main

RULES = [
    {"name": "big", "score": "image.coverage", "max": 0.35, "drop": "view"},
    {"name": "round", "score": "mesh.facet", "keep_bottom": 0.8},
    {"name": "whole", "score": "mesh.components", "max": 1},
]
POLICY = {"name": "mine", "about": "three rules", "rules": RULES}


@pytest.fixture
def server(dataset, tmp_path):
    """A server of a dataset with a saved selection, with which the page begins."""

    (tmp_path / "mine.json").write_text(json.dumps(POLICY))
    select(SelectConfig(dataset.storage.url, policy=str(tmp_path / "mine.json")))
    with serving(dataset) as running:
        yield running


def expected(dataset, rules) -> tuple[int, int]:
    """Identities and views that `select` keeps."""
    policy = parse_policy({"name": "x", "rules": rules})
    opened = open_tables(dataset, policy)
    heads = heads_of(next(iter(opened.values())))
    found = judge(policy, heads, partial(column_of, opened), Decisions.none(heads))
    return int(found.keep_identity.sum()), int(found.keep_view.sum())


def counts(page) -> tuple[int, int]:
    numbers = re.findall(r"<b>([\d,]+)</b>", page.inner_html("#counts"))
    return int(numbers[0].replace(",", "")), int(numbers[1].replace(",", ""))


def settle(page) -> None:
    """Wait until the worker has answered and the gallery is shown."""
    page.wait_for_timeout(300)
    page.wait_for_selector("body[aria-busy=false]")


def limit(page, rule: int, which: str):
    return page.locator(".rule").nth(rule).locator(f"input[type=number][aria-label^='{which}']")


def test_limits_by_number_slider_and_drag(page, server):
    assert counts(page) == expected(server.dataset, RULES)
    for value in (0.2, 0.3, 0.4):
        limit(page, 0, "max").fill(str(value))
        limit(page, 0, "max").press("Enter")
        settle(page)
        assert counts(page) == expected(server.dataset, [{**RULES[0], "max": value}, *RULES[1:]])
    slider = page.locator(".rule").nth(0).locator("input[type=range]").nth(1)
    slider.evaluate("(slider) => { slider.value = 300; slider.dispatchEvent(new Event('input')); }")
    settle(page)
    slid = float(limit(page, 0, "max").input_value())
    assert counts(page) == expected(server.dataset, [{**RULES[0], "max": slid}, *RULES[1:]])
    box = page.locator(".rule canvas").nth(0).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 40, steps=4)
    page.mouse.up()
    settle(page)
    dragged = float(limit(page, 0, "max").input_value())
    assert dragged > slid
    assert counts(page) == expected(server.dataset, [{**RULES[0], "max": dragged}, *RULES[1:]])


def test_shares_rules_sectors_and_counts_of_views(page, server):
    limit(page, 1, "keep_bottom").fill("0.5")
    limit(page, 1, "keep_bottom").press("Enter")
    settle(page)
    rules = [RULES[0], {**RULES[1], "keep_bottom": 0.5}, RULES[2]]
    assert counts(page) == expected(server.dataset, rules)
    first = page.locator(".rule").nth(0)
    first.get_by_text("more").click()
    first.locator("select[aria-label=drops]").select_option("identity")
    settle(page)
    rules[0] = {**rules[0], "drop": "identity"}
    assert counts(page) == expected(server.dataset, rules)
    first = page.locator(".rule").nth(0)
    first.get_by_text("more").click()
    first.locator("input[aria-label='azimuth from']").fill("-60")
    first.locator("input[aria-label='azimuth from']").press("Enter")
    settle(page)
    rules[0] = {**rules[0], "where": {"azimuth": [-60, 180], "elevation": [-90, 90]}}
    assert counts(page) == expected(server.dataset, rules)
    page.locator("#score").select_option('"mesh.holes"')
    page.click("#add button")
    settle(page)
    limit(page, 3, "min").fill("0.5")
    limit(page, 3, "min").press("Enter")
    settle(page)
    assert counts(page) == expected(server.dataset, [*rules, {"name": "holes", "score": "mesh.holes", "min": 0.5}])
    page.locator(".rule").nth(3).get_by_text("remove").click()
    page.check("#whole")
    settle(page)
    policy = parse_policy({"name": "x", "rules": rules, "whole_identities": True})
    opened = open_tables(server.dataset, policy)
    heads = heads_of(next(iter(opened.values())))
    assert (
        counts(page)[0] == judge(policy, heads, partial(column_of, opened), Decisions.none(heads)).keep_identity.sum()
    )


def test_a_selection_saved_here_is_that_of_select(page, server, tmp_path):
    limit(page, 0, "max").fill("0.3")
    limit(page, 0, "max").press("Enter")
    page.locator("#grid figure").nth(2).click()
    page.keyboard.press("d")
    settle(page)
    page.fill("#name", "here")
    page.click("#save button")
    page.wait_for_selector("#saved:has-text('Saved here')")
    there = server.dataset.storage.read(selection_file("here"))
    kept = read_selection(server.dataset, "here").rows.column("keep").to_numpy()
    view = read_selection(server.dataset, "here").rows.column("view").to_numpy()
    assert counts(page) == (int(kept[view < 0].sum()), int(kept[view >= 0].sum()))
    copy = server.dataset.storage.path(selection_file("here", "policy.json"))
    select(SelectConfig(server.dataset.storage.url, policy=copy, name="here"))
    assert server.dataset.storage.read(selection_file("here")) == there
    page.locator("#compare").select_option("mine")
    settle(page)
    assert re.search(r"lost, \d+ identities and \d+ views are gained", page.inner_text("#flips"))
    page.locator("#kind").select_option("flips")
    settle(page)
    assert page.locator("#grid figure").count() > 0
    assert "dropped" in page.inner_text("#grid")


def test_what_another_person_decides_arrives(page, server):
    rows = read_selection(server.dataset, "mine").rows.to_pylist()
    identity = next(row["identity"] for row in rows if row["view"] == WHOLE and row["keep"])
    before = counts(page)[0]
    DecisionLog(server.dataset.storage, "bob").append([Decision(identity, None, "drop", "janus", "bob", now())])
    page.evaluate("dispatchEvent(new Event('focus'))")
    settle(page)
    assert counts(page)[0] == before - 1
    page.locator("#kind").select_option("decided")
    settle(page)
    assert page.locator("#grid figure b").all_inner_texts() == [str(identity)]


def test_verdicts_by_key_outlive_the_server(page, server):
    grid = page.locator("#grid figure")
    grid.nth(0).click()
    page.keyboard.press("1")
    page.keyboard.press("d")
    page.keyboard.press("k")
    settle(page)
    made, _ = read_decisions(server.dataset.storage)
    assert [(d.verdict, d.reason, d.who) for d in made] == [("drop", "janus", "ann"), ("keep", "janus", "ann")]
    assert grid.nth(0).locator(".mark").inner_text() == "D"
    page.keyboard.press("z")
    page.keyboard.press("z")
    settle(page)
    made, _ = read_decisions(server.dataset.storage)
    assert standing(made) == {}
    assert [d.undoes for d in made[2:]] == [made[1].id, made[0].id]
    page.keyboard.press("Shift+Z")
    settle(page)
    assert [d.verdict for d in standing(read_decisions(server.dataset.storage)[0]).values()] == ["drop"]


def test_a_server_that_was_away_loses_no_verdict(browser, dataset):
    with serving(dataset) as first:
        context = browser.new_context()
        page = context.new_page()
        open_page(page, first)
        page.locator("#kind").select_option("random")
        settle(page)
        page.locator("#grid figure").nth(0).click()
        page.keyboard.press("d")
        settle(page)
    for key in "kdk":
        page.keyboard.press(key)
    page.wait_for_selector("#queue:has-text('to send')")
    with serving(dataset, first.port):
        page.wait_for_function("() => !document.querySelector('#queue').textContent.includes('to send')")
        made, hashes = read_decisions(dataset.storage)
        assert [d.verdict for d in made] == ["drop", "keep", "drop", "keep"]
        assert len(hashes) == 2
    context.close()


def test_every_picture_is_drawn(page, server):
    def is_drawn(selector: str) -> bool:
        pixels = page.eval_on_selector(
            selector, "(c) => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
        )
        return float(np.std(np.array(pixels).reshape(-1, 4)[:, :3])) > 5

    for kind in ("borderline", "worst", "random"):
        page.locator("#kind").select_option(kind)
        settle(page)
        assert is_drawn("#grid figure:first-child canvas"), kind
    page.fill("#find", "4/v002")
    page.press("#find", "Enter")
    settle(page)
    assert page.inner_text("#grid").startswith("4/v002")
    page.locator("#grid figure").click()
    page.keyboard.press("Enter")
    page.wait_for_selector("#orbit table:has-text('image.coverage')")
    assert is_drawn("#turn") and is_drawn("#strip")
    before = page.inner_text("#orbit p")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("(before) => document.querySelector('#orbit p').textContent !== before", arg=before)
    page.keyboard.press("n")
    page.wait_for_selector("#orbit h2:has-text('Identity 5')")
    page.keyboard.press("Escape")
    for tab in ("map", "viewpoints"):
        page.click(f"[data-tab={tab}]")
        settle(page)
        assert is_drawn(f"#{tab} canvas")
    assert is_drawn(".rule canvas")


def test_a_direction_gets_a_limit_of_its_own(page, server):
    page.click("[data-tab=viewpoints]")
    settle(page)
    box = page.locator("#viewcanvas").bounding_box()
    page.mouse.click(box["x"] + 52 + (box["width"] - 62) * 0.6, box["y"] + 40)
    settle(page)
    assert page.locator(".rule").count() == 4
    name = page.locator(".rule h3 span").nth(3).inner_text()
    assert name == "big at 0, 0"
    sector = {"azimuth": [-30, 30], "elevation": [-7, 7]}
    added = {**RULES[0], "name": name, "where": sector}
    assert counts(page) == expected(server.dataset, [*RULES, added])


def test_labels_measure_a_limit(page, server):
    page.click("[data-tab=labels]")
    page.click("#labels button")
    page.wait_for_selector("#blind figure")
    total = page.locator("#blind figure").count()
    assert "fails" not in page.inner_text("#blind")
    for _ in range(total):
        page.keyboard.press("d")
    settle(page)
    assert f"{total} labelled" in page.inner_text("#labels")
    fails = re.search(r"are bad\): (\d+) of (\d+) \((\d+) to 100 %\)", page.inner_text("#labels"))
    assert fails and fails[1] == fails[2]
    made, _ = read_decisions(server.dataset.storage)
    assert len(made) == total and all(d.blind for d in made)
    assert counts(page) == expected(server.dataset, RULES), "labels override nothing"
    page.click("[data-tab=gallery]")
    settle(page)
    page.locator("#grid figure").nth(0).click()
    page.keyboard.press("d")
    settle(page)
    made, _ = read_decisions(server.dataset.storage)
    assert [d.blind for d in made[total:]] == [False], "a verdict after labelling is no label"


def test_a_limit_never_divides_a_code(page):
    """Every limit from below to above three codes, of which two stand for several scores."""
    divided = page.evaluate("""async () => {
      const { snap } = await import("/static/rules.js");
      const { endPassing, firstPassing } = await import("/static/policy.js");
      const first = Float32Array.of(1, 3, 6), last = Float32Array.of(2, 5, 6), wrong = [];
      for (let value = 0; value < 7; value += 0.25) {
        const low = Math.fround(snap({ first, last }, "min", value));
        const high = Math.fround(snap({ first, last }, "max", value));
        for (let k = 0; k < 3; k++) {
          const above = k >= firstPassing({ last }, low), below = k < endPassing({ first }, high);
          if ((first[k] >= low) !== above || (last[k] >= low) !== above) wrong.push(["min", value, low]);
          if ((first[k] <= high) !== below || (last[k] <= high) !== below) wrong.push(["max", value, high]);
        }
      }
      return wrong;
    }""")
    assert divided == []


def test_the_page_in_one_file_needs_no_server(browser, dataset, tmp_path, capsys):
    (tmp_path / "mine.json").write_text(json.dumps(POLICY))
    select(SelectConfig(dataset.storage.url, policy=str(tmp_path / "mine.json")))
    file = tmp_path / "page.html"
    assert main(["review", dataset.storage.url, "--export", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: {file.stat().st_size / 1e6:.1f} MB, opens without a server\n"
    context = browser.new_context(offline=True)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]")
    assert counts(page) == expected(dataset, RULES)
    limit(page, 0, "max").fill("0.3")
    limit(page, 0, "max").press("Enter")
    settle(page)
    assert counts(page) == expected(dataset, [{**RULES[0], "max": 0.3}, *RULES[1:]])
    page.locator("#grid figure").nth(0).click()
    page.keyboard.press("Enter")
    page.wait_for_selector("#orbit table:has-text('image.coverage')")
    page.keyboard.press("d")
    assert "verdicts need the server" in page.inner_text("#error")
    context.close()
    assert not wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_fit_a_small_window(browser, server, scheme):
    context = browser.new_context(viewport={"width": 640, "height": 400}, device_scale_factor=2, color_scheme=scheme)
    page = context.new_page()
    open_page(page, server)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 25, 30)"}[scheme]
    context.close()


@pytest.mark.parametrize(("width", "height", "text"), [(1280, 800, 16), (3840, 2160, 24)])
def test_charts_grow_with_the_text_of_large_screens(browser, server, width, height, text):
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    open_page(page, server)
    assert page.evaluate("parseFloat(getComputedStyle(document.documentElement).fontSize)") == text
    opened = open_tables(server.dataset, parse_policy(POLICY))
    scores = column_of(opened, "image.coverage").values
    # The middle between the left end of the axis, 46 units into the chart, and its right end, 10 units before the border.
    box = page.locator(".rule canvas").nth(0).bounding_box()
    page.mouse.click(box["x"] + (box["width"] + 36 * text / 16) / 2, box["y"] + 40)
    settle(page)
    low, high = float(scores.min()), float(scores.max())
    set_to = float(limit(page, 0, "max").input_value())
    assert set_to == pytest.approx((low + high) / 2, abs=0.01 * (high - low))
    context.close()
