"""The same person twice, found across shards and blocks, against the plain double loop."""

import numpy as np
import pytest

import filters.scorers.duplicates
from filters.scorers.duplicates import nearest_others


@pytest.mark.parametrize("block", [3, 4096])
def test_nearest_others_equal_the_double_loop(block, monkeypatch):
    monkeypatch.setattr(filters.scorers.duplicates, "BLOCK", block)
    means = np.random.default_rng(0).normal(size=(11, 8)).astype(np.float32)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    means[4] = np.nan
    means[9] = means[2]
    cosine, nearest, earlier = nearest_others(means)
    for i in range(11):
        others = {j: float(means[i] @ means[j]) for j in range(11) if j not in (i, 4)}
        if i == 4:
            assert np.isnan(cosine[i]) and np.isnan(earlier[i]) and nearest[i] == -1
            continue
        assert cosine[i] == pytest.approx(max(others.values()), abs=1e-6)
        assert others[int(nearest[i])] == pytest.approx(max(others.values()), abs=1e-6)
        assert earlier[i] == pytest.approx(max((c for j, c in others.items() if j < i), default=-1), abs=1e-6)
    # One limit keeps the first of the pair and drops the second.
    assert (earlier[2] < 0.99) and (earlier[9] > 0.99)


def test_a_row_without_an_embedding_is_near_to_none():
    """Opposite embeddings are nearer to each other than to a row of NaN, whose cosine would be 0 as a vector of zeros."""
    cosine, nearest, earlier = nearest_others(np.array([[1, 0], [np.nan, np.nan], [-1, 0]], np.float32))
    assert cosine.tolist() == pytest.approx([-1, np.nan, -1], nan_ok=True)
    assert nearest.tolist() == [2, -1, 0]
    assert earlier.tolist() == pytest.approx([-1, np.nan, -1], nan_ok=True)


def test_one_alone_is_near_to_nobody():
    cosine, nearest, earlier = nearest_others(np.array([[1.0, 0.0]], np.float32))
    assert (cosine[0], nearest[0], earlier[0]) == (-1, -1, -1)
