"""The server of the review page: routes, and what it refuses. It listens on this machine only."""

import json
import secrets
import socket
import webbrowser
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from filters.config import ReviewConfig
from filters.decide import user_name
from filters.review.desk import Desk
from filters.review.offline import write_page
from filters.thumbnails import Thumbnails, atlas_request
from manifests.dataset import Dataset
from manifests.errors import DamagedData, MissingFile, StorageError, UserError

HOST = "127.0.0.1"
STATIC = Path(__file__).parent / "static"
LARGEST_BODY = 1_000_000
"""Bytes of a request."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets only the page itself in: the right host, no other origin, and the token as a cookie of this server."""

    def __init__(self, app: ASGIApp, port: int, token: str):
        self.app, self.cookie, self.token = app, f"spinset-{port}", token
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the start and the end of the server
            await self.app(scope, receive, send)
            return
        response = self._refusal(Request(scope))
        await (response or self.app)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if host not in self.hosts:
            return PlainTextResponse(f"this server is not {host}", 421)
        if origin is not None and origin != f"http://{host}":
            return PlainTextResponse("requests of other pages are refused", 403)
        given = request.query_params.get("token")
        if (
            request.url.path == "/"
            and given is not None
            and secrets.compare_digest(given.encode(), self.token.encode())
        ):
            response = RedirectResponse("/", 303)
            response.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
            return response
        if not secrets.compare_digest(request.cookies.get(self.cookie, "").encode(), self.token.encode()):
            return PlainTextResponse("open the address that spinset review printed, with its token", 403)
        return None


def make_app(desk: Desk, port: int, token: str) -> ASGIApp:
    """The server of one dataset."""
    thumbnails = Thumbnails(desk.dataset)

    async def page(request: Request) -> Response:
        return Response((STATIC / "index.html").read_text(), media_type="text/html", headers=HEADERS)

    async def about(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(desk.about))

    async def heads(request: Request) -> Response:
        return _binary(desk.heads_buffer)

    async def column(request: Request) -> Response:
        score = _json(request.query_params.get("score", ""))
        exact = request.query_params.get("exact") == "1"
        return _binary(await run_in_threadpool(desk.column_buffer, score, exact))

    async def identity(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(desk.identity, request.path_params["identity"]))

    async def atlas(request: Request) -> Response:
        asked = await _body(request, "items", "member", "size")
        data, damaged = await run_in_threadpool(thumbnails.atlas, *atlas_request(asked))
        return Response(data, media_type="image/jpeg", headers={"X-Damaged": json.dumps(damaged)})

    async def made(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(desk.decisions))

    async def decide(request: Request) -> Response:
        asked = await _body(request, "who", "verdicts")
        return JSONResponse(await run_in_threadpool(desk.decide, str(asked["who"]), asked["verdicts"]))

    async def save(request: Request) -> Response:
        asked = await _body(request, "name", "policy")
        return JSONResponse(await run_in_threadpool(desk.save, str(asked["name"]), asked["policy"]))

    async def selection(request: Request) -> Response:
        return _binary(await run_in_threadpool(desk.selection_buffer, request.path_params["name"]))

    routes: list[Any] = [
        Route("/", page),
        Route("/api/about", about),
        Route("/api/heads", heads),
        Route("/api/column", column),
        Route("/api/identities/{identity:int}", identity),
        Route("/api/atlas", atlas, methods=["POST"]),
        Route("/api/decisions", made),
        Route("/api/decisions", decide, methods=["POST"]),
        Route("/api/selections", save, methods=["POST"]),
        Route("/api/selections/{name}", selection),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    handlers: dict[Any, Any] = {
        UserError: _refused,
        DamagedData: _refused,
        MissingFile: _refused,
        StorageError: _refused,
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), port, token)


def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400 if isinstance(error, UserError) else 500)


def _binary(data: bytes) -> Response:
    return Response(data, media_type="application/octet-stream", headers=HEADERS)


async def _body(request: Request, *fields: str) -> dict[str, Any]:
    """The JSON object of a request with these fields; raises HTTPException for one that is too large."""
    data, size = b"", 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= LARGEST_BODY:  # the rest is read and forgotten, so that the sender gets the answer
            data += chunk
    if size > LARGEST_BODY:
        raise HTTPException(413, f"a request has at most {LARGEST_BODY:,} bytes")
    body = _json(data)
    if not isinstance(body, dict) or set(body) != set(fields):
        raise UserError(f"the request must be a JSON object with {', '.join(fields)}")
    return body


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"the request is not JSON: {error}") from None


def review(config: ReviewConfig) -> None:
    """Serve the page until it is interrupted, or write it to a file."""
    desk, token = Desk(Dataset(config.out), config.who or user_name()), secrets.token_urlsafe(24)
    if config.export:
        size = write_page(desk, Path(config.export))
        print(f"{config.export}: {size / 1e6:.1f} MB, opens without a server")
        return
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, config.port))
        except OSError as error:
            raise UserError(f"--port {config.port} cannot be used ({error.strerror}); choose another, or 0") from None
        listening.listen()  # from here on connections wait, so that the page may be opened before the server runs
        port = listening.getsockname()[1]
        address = f"http://{HOST}:{port}/?token={token}"
        print(
            f"{config.out}: {len(desk.heads.identity)} identities, {len(desk.heads.view)} views\nreview: {address}",
            flush=True,
        )
        print("Ctrl-C ends it; verdicts are saved as they are made", flush=True)
        if config.open:
            webbrowser.open(address)
        server = uvicorn.Server(uvicorn.Config(make_app(desk, port, token), log_level="warning", access_log=False))
        server.run(sockets=[listening])
