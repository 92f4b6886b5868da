"""The measurements of every loader, in the same loop: `python PEER.py REQUEST` in a process of its own, JSON out.

A peer is a module with `VERSION`, `convert(samples, folder)`, `stream(ask)` for one process, `open_loader(ask)` for batches
with workers and, if its library offers it, `getter(ask)` for random access. What it does not offer raises NotOffered.
"""

import io
import json
import os
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Sample = tuple[str, bytes, bytes]
"""Key, picture and description."""
FIELDS = ("key", "jpg", "json")
SHARDS = 6
"""Number of files of every format, with equally many samples each."""
RANDOM_GETS = 2000


class NotOffered(Exception):
    """The library does not do this; says what it does instead."""


@dataclass(frozen=True)
class Ask:
    """One measurement."""

    task: str
    folder: str
    started: float = 0.0
    """When the parent started this process."""
    shuffle: bool = True
    seed: int = 0
    batch: int = 64
    """Samples of a step, of all ranks together."""
    micro: int = 0
    """Samples of a worker of a rank, if that must be the same before and after a change of ranks."""
    workers: int = 2
    decode: str = ""
    """own: the decoder that the library documents; opencv: ours, for all of them; none if empty."""
    collate: str = "list"
    selection: str = ""
    stop: int = 0
    """Save after so many samples of all ranks."""
    state: str = ""
    """Where the state is left; a rank number is added."""

    @property
    def rank(self) -> int:
        return int(os.environ.get("RANK", 0))

    @property
    def world(self) -> int:
        return int(os.environ.get("WORLD_SIZE", 1))


class Loading(Protocol):
    """A loader of one rank."""

    def __iter__(self) -> Iterator[Any]: ...

    def unpack(self, batch: Any) -> Iterable[tuple[str, Any, Any]]: ...

    def state(self) -> bytes: ...

    def resume(self, folder: str) -> None:
        """Go on from the states that all ranks left in a folder."""
        ...


def stored(folder: str) -> Iterator[Sample]:
    """The samples of a spinset dataset, read as what it is: plain tars."""
    for path in sorted(Path(folder, "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            parts: dict[str, bytes] = {}
            for member in tar:
                key, extension = member.name.split(".", 1)
                parts[extension] = tar.extractfile(member).read()
                if extension == "json":  # the last member of a sample
                    yield key, parts["rgb.jpg"], parts["json"]


def per_shard(total: int) -> int:
    return -(-total // SHARDS)


def by_torchvision(picture: bytes) -> Any:
    """uint8 CHW."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(picture), dtype=torch.uint8), ImageReadMode.RGB)


def by_pillow(picture: bytes) -> Any:
    """uint8 HWC."""
    import torch
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(io.BytesIO(picture)).convert("RGB")))


def by_opencv(picture: bytes) -> Any:
    """uint8 HWC."""
    import cv2
    import torch

    return torch.from_numpy(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR_RGB))


def decoder(ask: Ask, own: Callable[[bytes], Any] = by_pillow) -> Callable[[bytes], Any]:
    return {"": bytes, "own": own, "opencv": by_opencv}[ask.decode]


def collated(samples: list[Any], how: str, stack: bool) -> Any:
    """Samples (key, picture, description) as a batch: a list of them, a tuple of columns, or a dict of columns."""
    if how == "list" and not stack:
        return samples
    columns = [list(column) for column in zip(*samples, strict=True)]
    if stack:
        import torch

        columns[1] = torch.stack(columns[1])
    return tuple(columns) if how == "tuple" else dict(zip(FIELDS, columns, strict=True))


def uncollated(batch: Any) -> Iterable[tuple[str, Any, Any]]:
    # torch makes a list of a tuple on some ways out of a worker.
    if isinstance(batch, list) and not (len(batch) == len(FIELDS) and isinstance(batch[0], list)):
        return batch
    columns = [batch[name] for name in FIELDS] if isinstance(batch, dict) else batch
    return zip(*columns, strict=True)


def run(peer: Any) -> None:
    """Answer the request on the command line."""
    ask, imported = Ask(**json.loads(sys.argv[1])), time.time()
    if ask.world > 1:
        import torch.distributed

        torch.distributed.init_process_group("gloo")
    try:
        answer = TASKS[ask.task](peer, ask, imported)
    except NotOffered as reason:
        answer = {"not_offered": str(reason)}
    print(json.dumps({"version": peer.VERSION, **answer}), flush=True)


def _convert(peer: Any, ask: Ask, _: float) -> dict[str, Any]:
    peer.convert(list(stored(ask.state)), Path(ask.folder))
    return {"bytes": sum(file.stat().st_size for file in Path(ask.folder).rglob("*") if file.is_file())}


def _stream(peer: Any, ask: Ask, _: float) -> dict[str, Any]:
    """An epoch sample by sample, in this process."""
    samples = peer.stream(ask)
    begun = time.perf_counter()
    keys = [key for key, picture, text in samples if len(picture) and len(text)]
    return {"rate": len(keys) / (time.perf_counter() - begun)}


def _load(peer: Any, ask: Ask, _: float) -> dict[str, Any]:
    """An epoch in batches, from the start of the workers to the end; and what follows the first batch alone."""
    loader, keys, first = peer.open_loader(ask), [], 0.0
    begun = time.perf_counter()
    for batch in loader:
        first = first or time.perf_counter()
        keys.append([key for key, picture, text in loader.unpack(batch) if len(picture) and len(text)])
    ended, count = time.perf_counter(), sum(map(len, keys))
    return {"rate": count / (ended - begun), "steady": (count - len(keys[0])) / (ended - first), "keys": keys}


def _verify(peer: Any, ask: Ask, _: float) -> dict[str, Any]:
    """A sum over the contents of all samples, whatever their order."""
    loader = peer.open_loader(ask)
    found = [zlib.crc32(key.encode() + jpg + text) for batch in loader for key, jpg, text in loader.unpack(batch)]
    return {"samples": len(found), "check": sum(found)}


def _random(peer: Any, ask: Ask, _: float) -> dict[str, Any]:
    get, count = peer.getter(ask)
    seconds = []
    for number in np.random.default_rng(ask.seed).integers(0, count, RANDOM_GETS).tolist():
        begun = time.perf_counter()
        key, picture, text = get(number)
        seconds.append(time.perf_counter() - begun)
        assert key and picture and text
    return {"p50": float(np.median(seconds)), "p99": float(np.quantile(seconds, 0.99))}


def _first(peer: Any, ask: Ask, imported: float) -> dict[str, Any]:
    loader = peer.open_loader(ask)
    next(iter(loader))
    now = time.time()
    return {"with_imports": now - ask.started, "without": now - imported}


def _save(peer: Any, ask: Ask, _: float) -> dict[str, Any]:
    """Consume up to a place and leave the state there."""
    loader, keys = peer.open_loader(ask), []
    for batch in loader:
        keys += [key for key, _, _ in loader.unpack(batch)]
        if len(keys) >= ask.stop // ask.world:
            break
    state = loader.state()
    Path(ask.state, f"{ask.rank}").write_bytes(state)
    return {"keys": [keys], "state": len(state)}


def _uninterrupted(peer: Any, ask: Ask, _: float) -> dict[str, Any]:
    loader = peer.open_loader(ask)
    return {"keys": [[key for batch in loader for key, _, _ in loader.unpack(batch)]]}


def _resume(peer: Any, ask: Ask, imported: float) -> dict[str, Any]:
    loader, keys = peer.open_loader(ask), []
    loader.resume(ask.state)
    seconds = 0.0
    for batch in loader:
        seconds = seconds or time.time() - imported
        keys += [key for key, _, _ in loader.unpack(batch)]
    return {"keys": [keys], "seconds": seconds}


TASKS = {
    "convert": _convert,
    "stream": _stream,
    "load": _load,
    "verify": _verify,
    "random": _random,
    "first": _first,
    "save": _save,
    "uninterrupted": _uninterrupted,
    "resume": _resume,
}


def request(task: str, folder: str, **fields: Any) -> str:
    """A request to a peer, given on its command line."""
    return json.dumps(asdict(Ask(task, folder, started=time.time(), **fields)))
