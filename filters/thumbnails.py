"""Small pictures of views, many in one image."""

import io
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

import pyarrow as pa
from PIL import Image, ImageDraw
from pydantic import Field, TypeAdapter, ValidationError

from manifests.dataset import Dataset
from manifests.errors import DamagedData, MissingFile, UserError
from manifests.reader import read_members

SIZES = (32, 256)
"""Smallest and largest side of a picture, in pixels."""
MOST = 256
"""Pictures in one image."""


Item = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
_REQUEST = TypeAdapter(
    tuple[
        Annotated[list[Item], Field(min_length=1, max_length=MOST)],
        Literal["rgb", "normal"],
        Annotated[int, Field(ge=SIZES[0], le=SIZES[1])],
    ]
)


class Thumbnails:
    """Makes images of thumbnails of a dataset; tables of shards that were read lately are kept."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self._views = lru_cache(64)(dataset.views)

    def atlas(self, items: Sequence[tuple[int, int]], member: str, size: int) -> tuple[bytes, list[int]]:
        """The pictures of views in one JPEG, row by row, `columns_of` in a row, and the positions of damaged ones."""
        columns, damaged = columns_of(len(items)), []
        sheet = Image.new("RGB", (columns * size, -(-len(items) // columns) * size), "white")
        for position, data in enumerate(self.read(items, member)):
            tile = thumbnail(data, size)
            if tile is None:
                damaged.append(position)
            place = position % columns * size, position // columns * size
            sheet.paste(tile or damaged_tile(size), place)
        file = io.BytesIO()
        sheet.save(file, "JPEG", quality=85)
        return file.getvalue(), damaged

    def read(self, items: Sequence[tuple[int, int]], member: str) -> list[bytes | None]:
        """The encoded pictures of views, given by identity and view; None for those that cannot be read."""
        by_shard: dict[int, list[int]] = {}
        for position, (identity, _) in enumerate(items):
            by_shard.setdefault(self.dataset.plan.shard_of(identity), []).append(position)
        found: dict[int, bytes | None] = {}
        for shard, positions in by_shard.items():
            found |= self._read(shard, {position: items[position] for position in positions}, member)
        return [found[position] for position in range(len(items))]

    def _read(self, shard: int, items: dict[int, tuple[int, int]], member: str) -> dict[int, bytes | None]:
        """The encoded pictures of views of one shard by position; None for those that cannot be read."""
        try:
            views = self._views(shard)
            keys = zip(views.column("identity").to_pylist(), views.column("view").to_pylist(), strict=True)
            rows = {key: row for row, key in enumerate(keys)}
        except (DamagedData, MissingFile, FileNotFoundError):
            return dict.fromkeys(items)
        known = {position: rows[item] for position, item in items.items() if item in rows}
        found: dict[int, bytes | None] = dict.fromkeys(items)
        try:
            (data,) = read_members(self.dataset, shard, views.take(pa.array(list(known.values()), pa.int64())), member)
            return {**found, **dict(zip(known, data, strict=True))}
        except (DamagedData, MissingFile):  # one member ends the read of all, so each is read alone
            for position, row in known.items():
                try:
                    ((found[position],),) = read_members(self.dataset, shard, views.slice(row, 1), member)
                except (DamagedData, MissingFile):
                    continue  # stays None and is shown as damaged
        return found


def atlas_request(asked: dict[str, Any]) -> tuple[list[tuple[int, int]], str, int]:
    """The items, member and size of a request; raises UserError for what is none."""
    try:
        return _REQUEST.validate_python((asked["items"], asked["member"], asked["size"]))
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(f"an image of pictures: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


def columns_of(count: int) -> int:
    """Pictures in a row of an image of so many."""
    return max(1, math.ceil(math.sqrt(count)))


def thumbnail(data: bytes | None, size: int) -> Image.Image | None:
    """A picture at a side of `size`; None if there is none or it does not decode."""
    if data is None:
        return None
    try:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (size, size))  # JPEGs decode at a fraction of their size
        return image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0)
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for damaged files
        return None


@lru_cache(8)
def damaged_tile(size: int) -> Image.Image:
    """The picture in the place of one that is damaged."""
    tile = Image.new("RGB", (size, size), "#ddd")
    draw = ImageDraw.Draw(tile)
    draw.line([(0, 0), (size, size)], "#b00", 2)
    draw.line([(0, size), (size, 0)], "#b00", 2)
    draw.text((size // 2, size // 2), "damaged", "#000", anchor="mm")
    return tile
