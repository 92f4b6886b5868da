"""The server: who may ask, what is refused, verdicts that are never lost or doubled, and selections as `select` makes them."""

import http.client
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from review_server import TOKEN, serving

from filters.config import SelectConfig
from filters.decisions import read_decisions
from filters.select import select
from manifests.dataset import Dataset
from manifests.selection import read_selection, selection_file
from manifests.storage import Storage

POLICY = {"name": "mine", "rules": [{"name": "big", "score": "image.coverage", "max": 0.35, "drop": "view"}]}


def ask(server, path: str, body: Any = None, **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    """A request with the token, unless other headers are given."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Cookie": f"spinset-{server.port}={TOKEN}", **headers}
    connection.request("GET" if body is None else "POST", path, data, {k: v for k, v in sent.items() if v})
    answer = connection.getresponse()
    status, text, headers = answer.status, answer.read(), answer.headers
    connection.close()
    return status, text, headers


def error(answer: tuple) -> str:
    return json.loads(answer[1])["error"]


def verdict(identity: int, number: int = 1, **fields: Any) -> dict[str, Any]:
    return {"id": f"{number:016x}", "identity": identity, "view": None, "verdict": "drop", "reason": "", **fields}


def test_the_token_becomes_a_cookie_of_this_page_only(server):
    status, _, headers = ask(server, f"/?token={TOKEN}", Cookie="")
    assert (status, headers["Location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=strict"} <= set(headers["Set-Cookie"].split("; "))
    assert ask(server, "/")[0] == 200


@pytest.mark.parametrize("path", ["/", "/?token=guess", "/api/about", "/api/heads", "/static/main.js", "/nothing"])
def test_without_the_token_nothing_is_answered(server, path):
    for cookie in ("", f"spinset-{server.port}=guess", f"spinset-{server.port + 1}={TOKEN}"):
        status, text, _ = ask(server, path, Cookie=cookie)
        assert (status, text) == (403, b"open the address that spinset review printed, with its token")


def test_other_origins_and_hosts_are_refused(server):
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.port + 1}"):
        assert ask(server, "/api/decisions", {"who": "eve", "verdicts": [verdict(1)]}, Origin=origin)[0] == 403
    assert ask(server, "/api/about", Host=f"evil.example:{server.port}")[0] == 421
    assert not server.dataset.storage.exists("decisions")
    assert ask(server, "/api/about", Origin=server.url)[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        (
            "/api/decisions",
            {"who": "ann", "verdicts": [verdict(99)]},
            400,
            "identity 99, which the score tables do not hold",
        ),
        (
            "/api/decisions",
            {"who": "ann", "verdicts": [verdict(1, view=6)]},
            400,
            "view 6 of identity 1, which has no such view",
        ),
        ("/api/decisions", {"who": "", "verdicts": [verdict(1)]}, 400, "needs the name"),
        ("/api/decisions", {"who": "ann", "verdicts": [verdict(1, verdict="kill")]}, 400, "verdict 0.verdict: Input"),
        ("/api/decisions", {"who": "ann", "verdicts": [verdict(1, id="../x")]}, 400, "verdict 0.id: String"),
        ("/api/decisions", {"who": "ann", "verdicts": 1}, 400, "Input should be a valid"),
        ("/api/decisions", {"verdicts": []}, 400, "with who, verdicts"),
        ("/api/decisions", b"{", 400, "not JSON"),
        ("/api/selections", {"name": "../../x", "policy": POLICY}, 400, "name is"),
        ("/api/selections", {"name": "x", "policy": {"rules": []}}, 400, "no name"),
        ("/api/selections/nothing", None, 400, "there is no selection 'nothing'"),
        ("/api/identities/99", None, 400, "holds no identity 99"),
        ("/api/column?score=%22image.nothing%22", None, 400, "no column 'nothing'"),
        ("/api/column?score=%22nothing.x%22", None, 400, "no scores of 'nothing'"),
        ("/api/column?score=x", None, 400, "not JSON"),
        ("/api/atlas", {"items": [[1, 0]], "member": "json", "size": 64}, 400, "'rgb' or 'normal'"),
        ("/api/atlas", {"items": [[1, 0]], "member": "rgb", "size": 4096}, 400, "less than or equal to 256"),
        ("/api/atlas", {"items": [], "member": "rgb", "size": 64}, 400, "at least 1 item"),
    ],
)
def test_what_is_refused_in_one_line(server, path, body, status, says):
    answer = ask(server, path, body)
    assert answer[0] == status
    assert says in error(answer)
    assert "\n" not in error(answer)
    assert not server.dataset.storage.exists("decisions")


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/api/selections/..%2f..%2fdataset"]
)
def test_paths_lead_nowhere_else(server, path):
    status, text, _ = ask(server, path)
    assert status in (400, 404)
    assert b"import" not in text and b"fingerprint" not in text


def test_a_large_body_is_refused(server):
    status, text, _ = ask(server, "/api/decisions", b"x" * 10_000_000)
    assert (status, text) == (413, b"a request has at most 1,000,000 bytes")
    assert ask(server, "/api/about")[0] == 200


def test_a_verdict_that_is_sent_twice_is_recorded_once(server):
    for _ in range(2):
        answer = ask(server, "/api/decisions", {"who": "ann", "verdicts": [verdict(1), verdict(2, 2, blind=True)]})
        assert json.loads(answer[1]) == {"recorded": [f"{1:016x}", f"{2:016x}"]}
    made, _ = read_decisions(server.dataset.storage)
    assert [(d.identity, d.verdict, d.who, d.blind) for d in made] == [
        (1, "drop", "ann", False),
        (2, "drop", "ann", True),
    ]


def test_two_servers_on_one_dataset_lose_nothing(server):
    with serving(Dataset(server.dataset.storage.url)) as other:
        for k, one in enumerate((server, other, server, other)):
            assert ask(one, "/api/decisions", {"who": "ann", "verdicts": [verdict(k, k)]})[0] == 200
        # Each knows what the other recorded: neither records it twice.
        assert ask(other, "/api/decisions", {"who": "bob", "verdicts": [verdict(0, 0), verdict(5, 5)]})[0] == 200
        assert [one["identity"] for one in json.loads(ask(server, "/api/about")[1])["decisions"]] == [0, 1, 2, 3, 5]
    made, logs = read_decisions(server.dataset.storage)
    assert [(d.who, d.identity) for d in made] == [("ann", 0), ("ann", 1), ("ann", 2), ("ann", 3), ("bob", 5)]
    assert len(logs) == 3


def test_a_remote_dataset_is_reviewed_like_a_local_one(server):
    """Any address of fsspec, such as s3://."""
    remote = Storage("memory://review/eggs")
    remote.fs.put(server.dataset.storage.root, remote.root, recursive=True)
    with serving(Dataset("memory://review/eggs")) as other:
        for path in ("/api/heads", "/api/column?score=%22image.coverage%22", "/api/identities/4"):
            assert ask(other, path)[:2] == ask(server, path)[:2]
        sheet = {"items": [[0, 1], [8, 2]], "member": "normal", "size": 32}
        assert ask(other, "/api/atlas", sheet)[1] == ask(server, "/api/atlas", sheet)[1]
        for one in (server, other):
            assert ask(one, "/api/selections", {"name": "here", "policy": POLICY})[0] == 200
        assert read_selection(other.dataset, "here").fingerprint == read_selection(server.dataset, "here").fingerprint
        assert ask(other, "/api/decisions", {"who": "ann", "verdicts": [verdict(3)]})[0] == 200
    assert [decision.identity for decision in read_decisions(remote)[0]] == [3]


def test_a_saved_selection_is_byte_for_byte_that_of_select(server, tmp_path):
    ask(server, "/api/decisions", {"who": "ann", "verdicts": [verdict(3, reason="janus"), verdict(0, 2, view=1)]})
    status, text, _ = ask(server, "/api/selections", {"name": "here", "policy": POLICY})
    assert status == 200
    made = json.loads(text)
    page = server.dataset.storage.read(selection_file("here"))
    (tmp_path / "p.json").write_text(json.dumps(POLICY))
    selected = select(SelectConfig(server.dataset.storage.url, policy=str(tmp_path / "p.json"), name="here"))
    assert server.dataset.storage.read(selection_file("here")) == page
    assert made["sha256"] == selected.fingerprint
    assert made["summary"]["decisions"]["identities"] == {"keep": 0, "drop": 1}


def test_pictures_of_a_damaged_shard_show_it(server):
    items = [[identity, view] for identity in (0, 1, 8) for view in range(6)]
    status, data, headers = ask(server, "/api/atlas", {"items": items, "member": "rgb", "size": 32})
    assert (status, headers["X-Damaged"]) == (200, "[]")
    whole = np.asarray(Image.open(io.BytesIO(data)))
    assert whole.shape == (4 * 32, 5 * 32, 3)
    name = server.dataset.file(0, ".tar")
    tar = server.dataset.storage.read(name)
    server.dataset.storage.write(name, tar[: len(tar) // 2])
    status, data, headers = ask(server, "/api/atlas", {"items": items, "member": "rgb", "size": 32})
    damaged = json.loads(headers["X-Damaged"])
    assert damaged and set(damaged) <= set(range(12))
    sheet = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    for k in range(len(items)):
        x, y = k % 5 * 32, k // 5 * 32
        changed = np.abs(sheet[y : y + 32, x : x + 32] - whole[y : y + 32, x : x + 32]).mean() > 10
        assert changed == (k in damaged)


def test_everything_about_an_identity(server):
    found = json.loads(ask(server, "/api/identities/4")[1])
    assert found["row"]["outcome"] == "kept"
    assert found["row"]["seed"] == 4
    assert len(found["view_scores"]["image.coverage"]) == 6
    assert found["scores"]["mesh.components"] == 1
