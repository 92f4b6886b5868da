"""Several datasets in given shares: what comes when, on every rank, and after a resume."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from manifests.dataset import Dataset
from train.data.blend import Blend, open_blend
from train.data.config import LoaderConfig
from train.data.sampling import RandomK


@pytest.fixture
def parts(make) -> list[Dataset]:
    return [make(6, 2, name="one"), make(9, 3, name="two", seed=100)]


def configs(parts: list[Dataset], **changes) -> list[LoaderConfig]:
    plain = {"recipe": RandomK(2), "batch": 4, "members": ("rgb",), "workers": 0, "tail": "exact"}
    return [LoaderConfig(part.storage.url, **{**plain, **changes}) for part in parts]


def blend(parts: list[Dataset], rank: int = 0, world: int = 1, seed: int = 0, **changes) -> Blend:
    return open_blend(configs(parts, **changes), (1.0, 2.0), rank, world, seed)


def seen(batches) -> list[tuple]:
    return [(b.index.tolist(), b.identity.tolist(), b.view.tolist(), b.rgb.sum().item()) for b in batches]


def test_shares_are_kept_and_no_batch_mixes(parts):
    one = blend(parts)
    counted = Counter(one.part_of(step) for step in range(3000))
    assert counted[1] / 3000 == pytest.approx(2 / 3, abs=0.03)
    assert [one.part_of(step) for step in range(50)] != [blend(parts, seed=1).part_of(step) for step in range(50)]
    assert one.step == 0
    for step, batch in enumerate(islice(one, 12)):
        assert one.step == step + 1 and len(batch) == 4
        if one.part_of(step) == 0:
            assert max(batch.identity.tolist()) < 6


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_resume_is_exact_with_any_ranks(parts, world):
    whole = seen(islice(blend(parts), 20))
    first = blend(parts)
    list(islice(first, 7))
    state = first.state()
    assert len(state) < 1024
    ranks = [blend(parts, rank, world) for rank in range(world)]
    for one in ranks:
        one.resume(state)
    for step, together in enumerate(zip(*(islice(one, 13) for one in ranks), strict=True), 7):
        indices = [list(group) for group in zip(*(b.index.tolist() for b in together), strict=True)]
        assert [i for group in indices for i in group] == whole[step][0]


def test_every_sample_of_a_part_comes_before_any_comes_again(parts):
    one = blend(parts)
    samples = {0: [], 1: []}
    for step, batch in enumerate(islice(one, 30)):
        samples[one.part_of(step)] += batch.index.tolist()
    for part, size in ((0, 6), (1, 9)):
        for first in range(0, len(samples[part]) - size, size):
            assert sorted(samples[part][first : first + size]) == list(range(size))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch": 8}, "a blend has one batch"),
        ({"recipe": RandomK(1)}, "a blend has one recipe"),
        ({"resolution": 8}, "a blend has one resolution"),
        ({"epochs": 1}, "ends after some epochs"),
    ],
)
def test_parts_that_do_not_go_together_are_one_line(parts, changes, says):
    one, two = configs(parts)
    with pytest.raises(ValueError, match=says) as error:
        open_blend([one, replace(two, **changes)], (1.0, 1.0))
    assert "\n" not in str(error.value)


def test_mixed_rigs_are_refused_before_the_first_step(make):
    parts = [make(name="three"), make(views=4, name="four")]
    with pytest.raises(ValueError, match=r"a blend has one rig: .*orbit-3, .*orbit-4"):
        blend(parts)


def test_shares_and_states_that_are_none(parts):
    with pytest.raises(ValueError, match="give each dataset a positive share"):
        open_blend(configs(parts), (1.0, 0.0))
    one = blend(parts)
    with pytest.raises(ValueError, match="not the state of a blend"):
        one.resume("{}")
    with pytest.raises(ValueError, match="saved with seed 5"):
        one.resume(blend(parts, seed=5).state())
    with pytest.raises(ValueError, match="another dataset"):
        one.resume(blend(parts[::-1]).state())
