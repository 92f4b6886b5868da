"""A server of the review page on the loopback, and the page in a browser."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from filters.review.app import make_app
from filters.review.desk import Desk
from manifests.dataset import Dataset

TOKEN = "secret"


@dataclass(frozen=True)
class Server:
    port: int
    dataset: Dataset

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(dataset: Dataset, port: int = 0) -> Iterator[Server]:
    """A server in a thread."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        port = listening.getsockname()[1]
        app = make_app(Desk(dataset, "ann"), port, TOKEN)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Server(port, dataset)
        finally:
            server.should_exit = True
            thread.join()


def open_page(page, server: Server) -> None:
    page.goto(f"{server.url}/?token={TOKEN}")
    page.wait_for_selector("html[data-ready]")
    page.wait_for_selector("body[aria-busy=false]")
