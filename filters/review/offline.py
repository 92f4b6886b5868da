"""The review page as one HTML file, with its scores and pictures inside: it needs no server and sends nothing."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from filters.review.desk import Desk, presets
from filters.rules import Softmax, parse_policy
from filters.thumbnails import MOST, Thumbnails
from jobs.progress import step
from manifests.errors import UserError

STATIC = Path(__file__).parent / "static"
SIDE = 96
"""Pixels of a picture."""
PICTURED = 300
"""Identities with pictures; of more, those nearest to the limits of the policies."""
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' data: blob:; worker-src blob: data:; "
    "img-src blob: data:; style-src 'unsafe-inline'"
)


def write_page(desk: Desk, file: Path) -> int:
    """Write the page and return its size in bytes."""
    about = desk.about()
    known = {score["name"] for score in about["scores"]}
    about["presets"] = {name: policy for name, policy in presets().items() if _columns(policy) <= known}
    policies = [*about["presets"].values(), *about["saved"].values()]
    scores = {json.dumps(rule["score"], separators=(",", ":")): rule["score"] for p in policies for rule in p["rules"]}
    scores |= {json.dumps(name): name for name in known}
    chosen = _chosen(desk, policies)
    data = {
        "about": about,
        "heads": _text(desk.heads_buffer),
        "columns": {key: _text(desk.column_buffer(score, exact=True)) for key, score in scores.items()},
        "selections": {name: _text(desk.selection_buffer(name)) for name in about["saved"]},
        "pictures": _pictures(desk, chosen, about["members"]),
        "identities": {str(i): desk.identity(int(i)) for i in desk.heads.identity[chosen]},
    }
    page = _page(data)
    file.write_text(page, encoding="utf-8")
    return file.stat().st_size


def _page(data: dict[str, Any]) -> str:
    """The page with its modules, its style and its data inside."""
    modules = {path.name: path.read_text() for path in STATIC.glob("*.js")}
    worker = "\n".join(
        re.sub(r"^(import .*|export (?=function|const))", "", modules.pop(name), flags=re.MULTILINE)
        for name in ("policy.js", "worker.js")
    )
    modules["policy.js"] = (STATIC / "policy.js").read_text()
    # Imports of a data: address cannot be relative, so modules get names of an import map.
    named = {name: re.sub(r'from "\./', 'from "spinset/', text) for name, text in modules.items()}
    imports = {f"spinset/{name}": f"data:text/javascript;base64,{_text(text.encode())}" for name, text in named.items()}
    script = f"data:text/javascript;charset=utf-8;base64,{_text(worker.encode())}"
    inside = json.dumps({**data, "worker": script}).replace("</", "<\\/")
    head = f"""<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<style>{(STATIC / "style.css").read_text()}</style>
<script type="importmap">{json.dumps({"imports": imports})}</script>
<script>globalThis.SPINSET_OFFLINE = {inside};</script>
<script type="module">import "spinset/main.js";</script>"""
    html = (STATIC / "index.html").read_text()
    links = re.compile(r'<link rel="stylesheet".*?>\n<script type="module".*?></script>', re.DOTALL)
    page, replaced = links.subn(lambda _: head, html)
    assert replaced == 1, "index.html has no links to replace"
    return page


def _pictures(desk: Desk, chosen: list[int], members: list[str]) -> dict[str, dict[str, Any]]:
    """An image of all views for each pictured identity and member."""
    heads, thumbnails, found = desk.heads, Thumbnails(desk.dataset), {}
    with step("pictures", len(chosen)) as advance:
        for owner in chosen:
            identity = int(heads.identity[owner])
            views = heads.view[heads.owner == owner][:MOST].tolist()
            for member in members if views else ():
                image, _ = thumbnails.atlas([(identity, view) for view in views], member, SIDE)
                found[f"{identity}/{member}"] = {"image": _text(image), "views": views, "size": SIDE}
            advance()
    return found


def _chosen(desk: Desk, policies: list[dict[str, Any]]) -> list[int]:
    """The positions of the identities that are pictured."""
    heads = desk.heads
    if len(heads.identity) <= PICTURED:
        return list(range(len(heads.identity)))
    rules = [rule for policy in policies for rule in parse_policy(policy).rules if not rule.is_quantile]
    if not rules:
        raise UserError("no policy of the page has a limit; save a selection first")
    chosen: set[int] = set()
    for rule in rules:
        column = desk.column(rule.score)
        limit = rule.min if rule.min is not None else rule.max
        nearest = np.argsort(np.where(np.isnan(column.values), np.inf, np.abs(column.values - limit)), kind="stable")
        owners = heads.owner[nearest] if column.level == "view" else nearest
        chosen |= set(owners[: PICTURED // len(rules)].tolist())
    return sorted(chosen)


def _columns(policy: dict[str, Any]) -> set[str]:
    """The columns that a policy reads."""
    scores = [rule.score for rule in parse_policy(policy).rules]
    return {name for score in scores for name in (score.softmax if isinstance(score, Softmax) else (score,))}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
