"""Requests to remote file systems: errors of one line, bounded waiting, and repetition of what may pass."""

import random
import sys
import time
from collections.abc import Callable
from typing import Any

from manifests.errors import StorageError, first_line

WAIT, LONGEST_WAIT = 0.5, 20.0
"""Seconds before the first repetition of a request that failed, and the longest such time; in between it doubles."""
FIRST_PATIENCE, PATIENCE = 4.0, 300.0
"""Seconds for which a request is repeated to a storage that has never answered, and to one that has."""
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 30.0
"""Seconds for which a request to S3 waits for a connection, and for the next bytes of an answer."""
TRANSIENT = {
    "ClientConnectionError",  # aiohttp
    "ClientPayloadError",
    "ConnectionError",  # Python's, botocore's and that of requests
    "HTTPClientError",  # botocore, when the connection is lost
    "IncompleteReadError",
    "ResponseParserError",  # an answer of an overloaded server that is no XML
    "ServiceRequestError",  # azure.core
    "ServiceResponseError",
    "Timeout",  # requests
    "TimeoutError",  # Python's, asyncio's and that of fsspec
    "TransportError",  # google.auth
}
"""Classes of errors of connections in the clients of object stores, which are not imported here."""
TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
"""Status codes of HTTP after which a request may succeed; 501 stands for one that the store never takes."""
TRANSIENT_CODES = {"ConditionalRequestConflict", "OperationAborted", "XAmzContentSHA256Mismatch"}
"""Codes of S3 with another status that ask for a repetition."""


def request_bounds(url: str) -> dict[str, Any]:
    """Options of a file system that bound how long one request may take; `Remote` alone tries again."""
    if url.partition("://")[0] not in ("s3", "s3a"):
        return {}
    bounds = {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": READ_TIMEOUT}
    return {"config_kwargs": {**bounds, "retries": {"total_max_attempts": 1}}}


class Remote:
    """A file system of fsspec whose errors become StorageErrors of one line, except that a file is missing or exists.

    What may pass, such as an overloaded server, is tried again for PATIENCE seconds if the storage has answered this process
    before, and a few times otherwise.
    """

    def __init__(self, fs: Any, url: str):
        self._fs, self._url = fs, url
        if hasattr(fs, "retries"):
            fs.retries = 1

    @property
    def protocols(self) -> tuple[str, ...]:
        known = self._fs.protocol
        return (known,) if isinstance(known, str) else tuple(known)

    def invalidate_cache(self) -> None:
        self._fs.invalidate_cache()  # asks no server, so it is no answer

    def open(self, path: str, mode: str) -> Any:
        """A file whose reads are repeated as other requests are."""
        file = self._reporting(self._fs.open)(path, mode)
        if cache := getattr(file, "cache", None):
            cache.fetcher = self._reporting(cache.fetcher)
        return file

    def mv(self, source: str, target: str) -> None:
        """Move a file; not repeated, because a second move of the same file finds none."""
        self._reporting(self._fs.mv, repeats=False)(source, target)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked for by pickle and copy, before there is a file system
            raise AttributeError(name)
        found = getattr(self._fs, name)
        return self._reporting(found) if callable(found) else found

    def _reporting(self, call: Callable[..., Any], repeats: bool = True) -> Callable[..., Any]:
        def reporting(*args: Any, **options: Any) -> Any:
            failing_since, wait = None, WAIT
            while True:
                try:
                    found = call(*args, **options)
                    _answered.add(self._url)
                    return found
                except (FileNotFoundError, FileExistsError):
                    _answered.add(self._url)
                    raise
                except Exception as error:  # the clients of object stores share no base class
                    now = time.monotonic()
                    # Not since the call began, because an upload may take longer than that.
                    failing_since = now if failing_since is None else failing_since
                    patience = PATIENCE if self._url in _answered else FIRST_PATIENCE
                    if not repeats or not _may_pass(error) or now - failing_since > patience:
                        raise StorageError(f"{self._url} cannot be used: {first_line(error)}") from error
                    if patience == PATIENCE and now > _reported.get(self._url, -PATIENCE) + PATIENCE:
                        _reported[self._url] = now
                        again = f"trying again for up to {patience / 60:.0f} minutes"
                        print(f"{self._url} does not answer now ({first_line(error)}); {again}", file=sys.stderr)
                time.sleep(wait * random.uniform(0.5, 1.5))  # not all workers at once
                wait = min(2 * wait, LONGEST_WAIT)

        return reporting


_answered: set[str] = set()
"""The addresses of storages that have answered this process."""
_reported: dict[str, float] = {}
"""When it was last reported that a storage does not answer, by its address, so that many requests report it once."""


def _may_pass(error: BaseException) -> bool:
    """Whether an error of a remote storage may pass: the server is overloaded or fails, or the connection does."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        response = response if isinstance(response, dict) else {}  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for code in (status, *(getattr(cause, name, None) for name in ("status", "status_code", "code"))):
            if isinstance(code, int) and code >= 400:
                return code in TRANSIENT_STATUS or response.get("Error", {}).get("Code") in TRANSIENT_CODES
        if TRANSIENT & {kind.__name__ for kind in type(cause).__mro__}:
            return True
        cause = cause.__cause__
    return False
