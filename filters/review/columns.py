"""Scores on their way to the browser: each column as codes and an exact table of the scores that a code stands for.

Every code stands for a range of scores that no limit of a known policy divides, so that the browser counts what `select`
counts. Columns with few different scores, and all columns of identities, have one code per score.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Shaped

from filters.policy import Column
from manifests.scores import IDENTITY

CODES = 4094
"""Ranges of a column of views; two more codes stand for NaN and for rows that were not scored, which makes 12 bits."""
ALIGNMENT = 8


@dataclass(frozen=True, eq=False)
class Coded:
    """A column as codes; code k stands for the scores from `first[k]` to `last[k]`.

    The code `len(first)` is NaN, and `len(first) + 1` says that the scorer did not look.
    """

    level: str
    codes: Shaped[np.ndarray, " m"]
    """Unsigned, 16 or 32 bits."""
    first: Float32[np.ndarray, " k"]
    last: Float32[np.ndarray, " k"]


def encode(column: Column, splits: list[float], exact: bool = False) -> Coded:
    """Codes of a column.

    Args:
        splits: limits that must not lie within a range.
        exact: one code per score, as rules that keep a share need.
    """
    known = column.valid & ~np.isnan(column.values)
    scores = np.unique(column.values[known])
    starts = np.arange(len(scores))
    if len(scores) > CODES and not exact and column.level != IDENTITY:
        starts = _ranges(column.values[known], scores, np.asarray(splits, np.float32))
    first, last = scores[starts], scores[np.append(starts[1:], len(scores)) - 1] if len(scores) else scores
    codes = np.searchsorted(first, column.values, "right") - 1
    codes[column.valid & np.isnan(column.values)] = len(first)
    codes[~column.valid] = len(first) + 1
    return Coded(column.level, codes.astype(np.uint16 if len(first) < 0xFFFE else np.uint32), first, last)


def _ranges(
    values: Float32[np.ndarray, " n"], scores: Float32[np.ndarray, " k"], splits: Float32[np.ndarray, " s"]
) -> np.ndarray:
    """The positions in `scores` at which ranges begin: half of them by equal shares, half ever closer at both ends.

    Limits lie in the tails, where one of a thousand views matters.
    """
    forced = np.concatenate([np.searchsorted(scores, splits, side) for side in ("left", "right")])
    forced = forced[forced < len(scores)]
    free = CODES - len(forced) - 1
    spread = np.linspace(-np.log(len(values)), np.log(len(values)), free // 2)
    shares = np.concatenate([np.linspace(0, 1, free - free // 2), 1 / (1 + np.exp(-spread))])
    ranked = np.sort(values)[(shares * (len(values) - 1)).astype(np.int64)]
    return np.unique(np.concatenate([[0], np.searchsorted(scores, ranked), forced]))


def coded_buffers(coded: Coded) -> dict[str, np.ndarray]:
    """The arrays of a column for `pack`; codes of 12 bits are packed, two in three bytes."""
    tables = {"first": coded.first, "last": coded.last}
    if len(coded.first) > CODES:
        return {"codes": coded.codes, **tables}
    pairs = np.append(coded.codes, np.zeros(len(coded.codes) % 2, np.uint16)).astype(np.uint32).reshape(-1, 2)
    whole = pairs[:, 0] | pairs[:, 1] << 12
    return {"packed": np.stack([whole >> shift & 0xFF for shift in (0, 8, 16)], 1).astype(np.uint8).ravel(), **tables}


def pack(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """Arrays with a header of JSON, which lists the place of each; little-endian, aligned for typed arrays."""
    places, at = {}, 0
    for name, array in arrays.items():
        places[name] = {"type": array.dtype.name, "at": at, "length": array.size}
        at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    text = json.dumps({**header, "arrays": places}).encode()
    text += b" " * (-(len(text) + 4) % ALIGNMENT)
    parts = [len(text).to_bytes(4, "little"), text]
    for array in arrays.values():
        data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        parts += [data, b"\0" * (-len(data) % ALIGNMENT)]
    return b"".join(parts)


def bits(flags: Bool[np.ndarray, " m"]) -> Shaped[np.ndarray, " k"]:
    """Flags as bits, the first in the lowest bit of the first byte."""
    return np.packbits(flags, bitorder="little")
