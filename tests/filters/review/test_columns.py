"""Columns of codes: no code is divided by a known limit, few scores are exact, and the bytes are what the browser reads."""

import json

import numpy as np
import pytest

from filters.policy import Column
from filters.review.columns import CODES, bits, coded_buffers, encode, pack


def column(values, level="view", valid=None) -> Column:
    values = np.asarray(values, np.float32)
    return Column(level, values, np.ones(len(values), bool) if valid is None else np.asarray(valid))


def test_few_scores_have_a_code_each():
    found = encode(column([3, 1, np.nan, 3, 2], valid=[True, True, True, True, False]), [])
    assert found.first.tolist() == found.last.tolist() == [1, 3]
    assert found.codes.tolist() == [1, 0, 2, 1, 3], "NaN is the first code after the scores, not scored the second"


@pytest.mark.parametrize("share", [0.0003, 0.01, 0.5, 0.99])
def test_no_code_is_divided_by_a_limit(share):
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    limit = float(np.quantile(values, share))
    found = encode(column(values), [limit])
    assert len(found.first) <= CODES < len(np.unique(values))
    low, high = np.float32(limit), np.nextafter(np.float32(limit), np.float32(np.inf))
    for edge in (low, high):
        assert not ((found.first < edge) & (edge <= found.last)).any()
    passing = found.codes >= np.searchsorted(found.last, low)
    assert (passing == (values >= np.float32(limit))).all()
    assert (found.first[found.codes] <= values).all()
    assert (values <= found.last[found.codes]).all()


def test_ranges_are_finest_in_the_tails():
    values = np.random.default_rng(1).normal(size=500_000).astype(np.float32)
    counts = np.bincount(encode(column(values), []).codes)
    assert counts.max() < 0.002 * len(values)
    assert np.cumsum(counts)[20] < 0.0005 * len(values)
    assert np.cumsum(counts[::-1])[20] < 0.0005 * len(values)


def test_identities_and_exact_columns_keep_every_score():
    values = np.random.default_rng(2).normal(size=70_000)
    for found in (encode(column(values, "identity"), []), encode(column(values), [], exact=True)):
        assert np.array_equal(found.first[found.codes], np.float32(values))
        assert found.codes.dtype == np.uint32


def test_buffers_are_read_back():
    codes = encode(column(np.arange(1001) % 7), [])
    data = pack({"name": "x"}, {**coded_buffers(codes), "flags": bits(np.array([True, False, True] * 3))})
    length = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + length])

    def array(name):
        place = header["arrays"][name]
        assert (4 + length + place["at"]) % 8 == 0
        return np.frombuffer(data, place["type"], place["length"], 4 + length + place["at"])

    packed = array("packed").reshape(-1, 3).astype(int)
    pairs = np.stack([packed[:, 0] | (packed[:, 1] & 15) << 8, packed[:, 1] >> 4 | packed[:, 2] << 4], 1)
    assert pairs.ravel()[:1001].tolist() == codes.codes.tolist()
    assert array("first").tolist() == list(range(7))
    assert [array("flags")[k >> 3] >> (k & 7) & 1 for k in range(9)] == [1, 0, 1] * 3
