"""Datasets on an object store: moto's server plays S3, and a gate before it plays its bad hours."""

import hashlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import boto3
import numpy as np
import pytest
import s3fs
from egg import egg_job
from moto.server import ThreadedMotoServer

import spinset
from datagen.generate import generate
from jobs.ledger import Ledger
from jobs.pool import PoolConfig
from manifests import remote as module
from manifests.dataset import Dataset
from manifests.errors import StorageError
from manifests.index import open_index
from manifests.reader import Reader
from manifests.status import summarise
from manifests.storage import Storage
from manifests.verify import verify

TESTS = Path(__file__).parents[1]
INLINE = PoolConfig(inline=True)
SMALL = {"identities": 3, "identities_per_shard": 2}


class Gate(BaseHTTPRequestHandler):
    """Passes requests on to the server behind, except those for which a test sets a status.

    A number is answered at once. "cut" closes the connection; "half" and "hang" do so only after the server has done what
    was asked, in the middle of its answer and at the end of the test.
    """

    protocol_version = "HTTP/1.1"
    behind: tuple[str, int]
    failing: SimpleNamespace

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = self.failing.status(self.command, self.path)
        if isinstance(status, int) and status:
            text = f"<Error><Code>{CODES[status]}</Code><Message>no</Message></Error>"
            self._answer(status, {"Content-Type": "application/xml"}, text.encode())
            return
        if status == "cut":
            self.close_connection = True
            return
        found = self._ask(body)
        self.close_connection = bool(status)
        if status == "hang":
            self.failing.over.wait()
        elif not status or found.body:
            size = len(found.body) // 2 if status == "half" else len(found.body)
            self._answer(found.status, dict(found.getheaders()), found.body[:size])

    def _ask(self, body: bytes) -> SimpleNamespace:
        connection = HTTPConnection(*self.behind)
        connection.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k != "Connection"})
        found = connection.getresponse()
        answer = SimpleNamespace(status=found.status, getheaders=found.getheaders, body=found.read())
        connection.close()
        return answer

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        length = headers.pop("Content-Length", str(len(body)))
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def log_message(self, *args: object) -> None:
        pass


CODES = {
    403: "AccessDenied",
    409: "ConditionalRequestConflict",
    429: "TooManyRequests",
    500: "InternalError",
    501: "NotImplemented",
    502: "BadGateway",
    503: "SlowDown",
    504: "GatewayTimeout",
}


@pytest.fixture(scope="module")
def s3() -> Iterator[SimpleNamespace]:
    """An endpoint with a bucket, and `fail`, which decides on the status of every request."""
    logging.getLogger("werkzeug").disabled = True  # it would write a line of every request between those of the command
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    failing = SimpleNamespace(status=lambda method, path: 0, over=threading.Event())
    handler = type("Handler", (Gate,), {"behind": server.get_host_and_port(), "failing": failing})
    gate = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=gate.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{gate.server_address[1]}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        # fsspec keeps file systems by their arguments, and the endpoint is none: one of an earlier test would be found.
        s3fs.S3FileSystem.clear_instance_cache()
        direct = boto3.client("s3", endpoint_url="http://{}:{}".format(*server.get_host_and_port()))
        direct.create_bucket(Bucket="heads")
        yield SimpleNamespace(endpoint=endpoint, failing=failing, direct=direct)
        failing.over.set()
        gate.shutdown()
        gate.server_close()
        server.stop()


@pytest.fixture(autouse=True)
def soon(monkeypatch, s3):
    """Requests are repeated at once, and no test leaves the store failing."""
    monkeypatch.setattr(module, "WAIT", 0.01)
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(module, "PATIENCE", 60.0)
    yield
    s3.failing.status = lambda method, path: 0


@pytest.fixture
def bucket(s3, request) -> Storage:
    """A folder of the bucket for one test."""
    return Storage(f"s3://heads/{hashlib.sha1(request.node.name.encode()).hexdigest()[:8]}")


def hashes(storage: Storage) -> dict[str, str]:
    """The files of all shards but the records of how they were made."""
    names = [name for name in storage.names("shards") if not name.endswith(".done.json")]
    return {name: hashlib.sha256(storage.read(f"shards/{name}")).hexdigest() for name in names}


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("eggs")
    generate(egg_job(str(folder), INLINE, **SMALL))
    return hashes(Storage(folder))


def test_files_are_written_read_listed_and_removed(bucket, tmp_path):
    assert bucket.names() == [] and not bucket.exists("a/b")
    bucket.write("a/b", b"one")
    bucket.write("a/c", b"two")
    assert (bucket.read("a/b"), bucket.size("a/c"), bucket.names("a"), bucket.names()) == (b"one", 3, ["b", "c"], ["a"])
    assert list(bucket.read_all(["a/c", "a/x", "a/b"])) == [b"two", None, b"one"]
    other = Storage(f"{bucket.url}/beside")
    other.write("a/b", b"three")
    bucket.take(other, "a/b")
    assert bucket.read("a/b") == b"three" == other.read("a/b")
    bucket.remove("a/c")
    assert bucket.names("a") == ["b"]
    with pytest.raises(FileNotFoundError):
        bucket.read("a/c")
    bucket.remove_all()
    assert bucket.names() == []


def test_of_two_that_create_a_file_one_does(bucket):
    assert bucket.create("lease", b"first") and not bucket.create("lease", b"second")
    assert bucket.read("lease") == b"first"


def test_a_dataset_has_the_bytes_of_a_local_one_and_can_be_used(bucket, local, capsys):
    dataset = generate(egg_job(bucket.url, INLINE, **SMALL))
    assert hashes(bucket) == local and list(verify(dataset, deep=True)) == []
    assert (summarise(dataset).kept, summarise(dataset).disk_size) == (3, None)
    index = open_index(Dataset(bucket.url))
    found = Reader(dataset, index).read({"rgb": np.arange(len(index))})
    assert len(found["rgb"]) == 18 and all(data[:2] == b"\xff\xd8" for data in found["rgb"])
    assert spinset.main(["status", bucket.url]) == spinset.main(["verify", bucket.url, "--deep"]) == 0
    assert "3 of 3 identities" in capsys.readouterr().out


def test_it_grows_there_too(bucket, local):
    generate(egg_job(bucket.url, INLINE, **{**SMALL, "identities": 1}))
    assert list(verify(generate(egg_job(bucket.url, INLINE, **SMALL)), deep=True)) == []
    assert hashes(bucket) == local


def test_errors_of_the_server_pass(bucket, local, s3, capsys):
    """Every third request fails; nothing that is half there is ever committed, and one line says so."""
    Storage(bucket.url).exists("anything")
    statuses = itertools.cycle((500, 0, 0, 503, 0, 0, "cut", 0, "half", 0, 0, 429, 0))
    s3.failing.status = lambda method, path: next(statuses)
    dataset = generate(egg_job(bucket.url, INLINE, **SMALL))
    s3.failing.status = lambda method, path: 0
    assert hashes(bucket) == local and list(verify(dataset, deep=True)) == []
    said = [line for line in capsys.readouterr().err.splitlines() if "does not answer now" in line]
    assert len(said) == 1 and said[0].endswith("trying again for up to 1 minutes")


@pytest.mark.parametrize("status", [500, 502, 503, 504, "cut", "half", "hang"])
def test_every_request_is_repeated(bucket, s3, monkeypatch, status):
    """The first request of each call fails, before or after the store has done what was asked."""
    monkeypatch.setattr(module, "READ_TIMEOUT", 0.5)
    storage = Storage(bucket.url)
    storage.exists("anything")
    storage.write("a/b", b"one")
    other = Storage(f"{bucket.url}/beside")
    other.write("a/b", b"two")

    def failing_once(call, *args):
        first = iter([status])
        s3.failing.status = lambda method, path: next(first, 0)
        found = call(*args)
        assert next(first, None) is None
        return found

    assert failing_once(storage.read, "a/b") == b"one"
    assert failing_once(storage.size, "a/b") == 3
    assert failing_once(storage.exists, "a/b") is True
    assert failing_once(storage.names, "a") == ["b"]
    assert failing_once(lambda: list(storage.read_all(["a/b", "a/b"]))) == [b"one", b"one"]
    failing_once(storage.take, other, "a/b")
    assert storage.read("a/b") == b"two"
    failing_once(storage.write, "a/c", b"three")
    assert storage.read("a/c") == b"three"
    assert failing_once(storage.create, "a/lease", b"mine") and not failing_once(storage.create, "a/lease", b"yours")
    failing_once(storage.remove, "a/c")
    assert storage.names("a") == ["b", "lease"]
    file = storage.open("a/b")  # whose size is asked first
    assert failing_once(file.read) == b"two"


def test_an_upload_in_parts_appears_whole(bucket, s3):
    """A part fails, and the upload begins anew; the key is not there before the end."""
    data = np.random.default_rng(0).bytes(101 << 20)  # s3fs takes parts from 100 MiB on
    key = bucket.path("a").partition("/")[2]
    there, statuses = [], itertools.chain([0, 503], itertools.repeat(0))

    def status(method: str, path: str) -> int:
        if "partNumber" not in path:
            return 0
        there.append(s3.direct.list_objects_v2(Bucket="heads", Prefix=key)["KeyCount"])
        return next(statuses)

    bucket.exists("anything")
    s3.failing.status = status
    bucket.write("a", data)
    assert bucket.read("a") == data and len(there) > 3 and not any(there)
    assert not s3.direct.list_multipart_uploads(Bucket="heads").get("Uploads")


def test_a_long_upload_that_fails_is_repeated(bucket, s3, monkeypatch):
    """Patience counts from the failure, not from the beginning of the upload."""
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    first = iter([503])

    def status(method: str, path: str) -> int:
        if found := next(first, 0):
            time.sleep(0.4)
        return found

    bucket.exists("anything")
    s3.failing.status = status
    bucket.write("a", b"1")
    assert bucket.read("a") == b"1"


@pytest.mark.parametrize("kind", [".tar", ".views.parquet", ".done.json"])
def test_a_store_that_stays_away_leaves_nothing_half_committed(bucket, local, s3, monkeypatch, kind):
    """From its first upload of a kind on nothing answers; afterwards the same command completes the dataset."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    away = []

    def status(method: str, path: str) -> int:
        if method == "PUT" and "/shards/" in path and kind in path:
            away.append(path)
        return 503 if away else 0

    s3.failing.status = status
    with pytest.raises(StorageError, match="cannot be used"):
        generate(egg_job(bucket.url, INLINE, **SMALL))
    s3.failing.status = lambda method, path: 0
    assert away and Dataset(bucket.url).committed() == []
    bucket.fs.rm(bucket.path("work"), recursive=True)  # the lease of this process, which for another one would be dead
    generate(egg_job(bucket.url, INLINE, **SMALL))
    assert hashes(bucket) == local and list(verify(Dataset(bucket.url), deep=True)) == []


def test_a_lost_answer_does_not_lose_a_lease(bucket, s3):
    """The store has written the lease, but its answer never came."""
    bucket.exists("anything")
    lost = iter(["half"])
    with Ledger(bucket, "generate", lambda unit: False) as ledger:
        s3.failing.status = lambda method, path: next(lost, 0) if method == "PUT" and "leases" in path else 0
        assert ledger.claim(0)


def test_a_lease_that_is_gone_when_it_is_looked_at(bucket, s3):
    bucket.write("lease", b"first")

    def status(method: str, path: str) -> int:
        if method == "GET":
            s3.direct.delete_object(Bucket="heads", Key=bucket.path("lease").partition("/")[2])
        return 0

    s3.failing.status = status
    assert not bucket.create("lease", b"second") and bucket.names() == []


def test_conflicts_of_conditional_writes(bucket, s3):
    """S3 answers 409 while another write is under way, and asks for a repetition."""
    first = iter([409])
    s3.failing.status = lambda method, path: next(first, 0) if method == "PUT" else 0
    assert bucket.create("lease", b"mine") and bucket.read("lease") == b"mine"


def test_a_store_without_conditional_writes(bucket, s3, capsys):
    """It answers 501 to them, at once and for ever."""
    bucket.exists("anything")
    answers = iter([501, 0, 501])
    s3.failing.status = lambda method, path: next(answers) if method == "PUT" else 0
    assert bucket.create("lease", b"first") and not bucket.create("lease", b"second")
    assert bucket.read("lease") == b"first" and capsys.readouterr().err == ""


def test_a_process_that_is_killed_at_its_record(bucket, s3, tmp_path):
    """The record of the second shard never arrives, so the shard does not count; the same command completes it."""
    killed = threading.Event()

    def status(method: str, path: str) -> int | str:
        if method == "PUT" and "000001.done.json" in path and not killed.is_set():
            process.kill()
            killed.set()
            return "cut"
        return 0

    s3.failing.status = status
    run = f"import egg; egg.main({bucket.url!r}, 0)"
    paths = os.pathsep.join(str(path) for path in (TESTS.parent, TESTS))
    process = subprocess.Popen([sys.executable, "-c", run], env={**os.environ, "PYTHONPATH": paths})
    assert process.wait() == -signal.SIGKILL
    assert Dataset(bucket.url).committed() == [0] and bucket.exists("shards/heads-000001.tar")
    generate(egg_job(bucket.url, INLINE, slow=0.05))
    generate(egg_job(str(tmp_path / "local"), INLINE, slow=0.05))
    assert hashes(bucket) == hashes(Storage(tmp_path / "local"))


def test_a_store_that_is_overloaded_for_a_while(bucket, s3):
    until = time.monotonic() + 0.5
    bucket.write("a", b"1")
    s3.failing.status = lambda method, path: 503 if time.monotonic() < until else 0
    assert bucket.read("a") == b"1"


def refused(capsys, url: str, code: int, *says: str) -> None:
    assert (
        spinset.main(["generate", url, "--identities", "1", "--rig", "orbit-2", "--resolution", "32", "--inline"])
        == code
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert all(text in line for text in (url, *says)), line


def test_a_bucket_that_does_not_exist(s3, capsys):
    assert spinset.main(["status", "s3://nowhere/heads"]) == 2
    assert "s3://nowhere/heads is not a dataset" in capsys.readouterr().err
    refused(capsys, "s3://nowhere/heads", 2, "bucket does not exist")


def test_a_wrong_key(s3, capsys):
    s3.failing.status = lambda method, path: 403
    refused(capsys, "s3://heads/refused", 1, "cannot be used: PermissionError")


def test_an_endpoint_that_is_dead(s3, capsys, monkeypatch):
    """It has never answered, so it is given up soon."""
    monkeypatch.setattr(module, "FIRST_PATIENCE", 0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    s3fs.S3FileSystem.clear_instance_cache()
    refused(capsys, "s3://dead/heads", 1, "cannot be used", "127.0.0.1:9")
    with pytest.raises(StorageError):
        Storage("s3://dead/heads").names()
    assert capsys.readouterr().err == ""  # it does not wait for minutes
    s3fs.S3FileSystem.clear_instance_cache()
