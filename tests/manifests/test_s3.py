"""Datasets on an object store: moto's server plays S3, and a gate before it plays its bad hours."""

import hashlib
import itertools
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import boto3
import numpy as np
import pytest
from egg import egg_job
from moto.server import ThreadedMotoServer

import spinset
from datagen.generate import generate
from jobs.ledger import Ledger
from jobs.pool import PoolConfig
from manifests import storage as module
from manifests.dataset import Dataset
from manifests.errors import StorageError
from manifests.index import open_index
from manifests.reader import Reader
from manifests.status import summarise
from manifests.storage import Storage
from manifests.verify import verify

INLINE = PoolConfig(inline=True)
SMALL = {"identities": 3, "identities_per_shard": 2}


class Gate(BaseHTTPRequestHandler):
    """Passes requests on to the server behind, except that it answers some itself with the status that a test sets."""

    protocol_version = "HTTP/1.1"
    behind: tuple[str, int]
    failing: SimpleNamespace

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if status := self.failing.status(self.command, self.path):
            if status == "lost":  # the server does it, and its answer never arrives
                self._ask(body)
            number = 500 if status == "lost" else status
            text = f"<Error><Code>{CODES[number]}</Code><Message>no</Message></Error>"
            self._answer(number, {"Content-Type": "application/xml"}, text.encode())
            return
        found = self._ask(body)
        self._answer(found.status, dict(found.getheaders()), found.body)

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


CODES = {403: "AccessDenied", 429: "TooManyRequests", 500: "InternalError", 503: "SlowDown"}


@pytest.fixture(scope="module")
def s3() -> Iterator[SimpleNamespace]:
    """An endpoint with a bucket, and `fail`, which decides on the status of every request."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    failing = SimpleNamespace(status=lambda method, path: 0)
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
        boto3.client("s3").create_bucket(Bucket="heads")
        yield SimpleNamespace(endpoint=endpoint, failing=failing)
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
    """Every third request fails; nothing that is half there is ever committed."""
    Storage(bucket.url).exists("anything")
    statuses = itertools.cycle((500, 0, 0, 503, 0, 0, 429, 0))
    s3.failing.status = lambda method, path: next(statuses)
    dataset = generate(egg_job(bucket.url, INLINE, **SMALL))
    s3.failing.status = lambda method, path: 0
    assert hashes(bucket) == local and list(verify(dataset, deep=True)) == []
    assert "does not answer now" in (said := capsys.readouterr().err) and "trying again for up to 1 minutes" in said


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
    lost = iter(["lost"])
    with Ledger(bucket, "generate", lambda unit: False) as ledger:
        s3.failing.status = lambda method, path: next(lost, 0) if method == "PUT" and "leases" in path else 0
        assert ledger.claim(0)


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
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    refused(capsys, "s3://dead/heads", 1, "cannot be used", "127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
