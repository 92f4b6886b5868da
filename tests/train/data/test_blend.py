"""Several datasets in given proportions: what comes when, on every rank, and after a resume."""

from collections import Counter
from itertools import islice

import pytest

from manifests.dataset import Dataset
from train.data.config import LoaderConfig
from train.data.loader import Blend, open_loader
from train.data.sampling import RandomK


@pytest.fixture
def parts(make) -> list[Dataset]:
    return [make(6, 2, name="one"), make(9, 3, name="two", seed=100)]


def blend(parts: list[Dataset], rank: int = 0, world: int = 1, **changes) -> Blend:
    first, *others = (part.storage.url for part in parts)
    plain = {"recipe": RandomK(2), "batch": 4, "members": ("rgb",), "workers": 0, "tail": "exact"}
    config = {**plain, "blend": tuple(others), "blend_weights": (1.0, 2.0), **changes}
    loader = open_loader(LoaderConfig(first, **config), rank, world)
    assert isinstance(loader, Blend)
    return loader


def contents(batches) -> list[tuple]:
    return [(b.index.tolist(), b.identity.tolist(), b.view.tolist(), b.rgb.sum().item()) for b in batches]


def test_weights_are_kept_and_no_batch_mixes(parts):
    one = blend(parts)
    counted = Counter(one.part_at(step) for step in range(3000))
    assert counted[1] / 3000 == pytest.approx(2 / 3, abs=0.03)
    other = blend(parts, seed=1)
    assert [one.part_at(step) for step in range(50)] != [other.part_at(step) for step in range(50)]
    assert one.step == 0
    largest = Counter()
    for step, batch in enumerate(islice(one, 12)):
        assert one.step == step + 1 and len(batch) == 4
        largest[one.part_at(step)] = max(largest[one.part_at(step)], *batch.identity.tolist())
    assert largest == {0: 5, 1: 8}


def test_without_weights_datasets_are_equal(parts):
    one = blend(parts, blend_weights=())
    counted = Counter(one.part_at(step) for step in range(3000))
    assert counted[1] / 3000 == pytest.approx(1 / 2, abs=0.03)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_resume_is_exact_with_any_ranks(parts, world):
    straight = contents(islice(blend(parts), 20))
    first = blend(parts)
    list(islice(first, 7))
    state = first.state().to_json()
    assert len(state) < 1024
    ranks = [blend(parts, rank, world) for rank in range(world)]
    for one in ranks:
        assert one.resume(state) == ""
    for step, together in enumerate(zip(*(islice(one, 13) for one in ranks), strict=True), 7):
        indices = [list(group) for group in zip(*(b.index.tolist() for b in together), strict=True)]
        assert [i for group in indices for i in group] == straight[step][0]


def test_every_sample_of_a_part_comes_before_any_comes_again(parts):
    one = blend(parts)
    samples = {0: [], 1: []}
    for step, batch in enumerate(islice(one, 30)):
        samples[one.part_at(step)] += batch.index.tolist()
    for part, size in ((0, 6), (1, 9)):
        for first in range(0, len(samples[part]) - size, size):
            assert sorted(samples[part][first : first + size]) == list(range(size))


def test_streams_can_be_blended_and_say_that_their_resume_is_not_exact(parts):
    one = blend(parts, sequential=True)
    list(islice(one, 6))
    other = blend(parts, sequential=True)
    assert "begins a new epoch" in other.resume(one.state().to_json())
    assert other.step == 6
    assert [part.state().epoch for part in other.parts] == [part.state().epoch for part in one.parts]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 1}, r"--loader.epochs is 1; with --loader.blend batches never end"),
        ({"blend_weights": (1.0,)}, r"give one weight for --data and one for each of the 1 datasets"),
        ({"blend_weights": (1.0, 0.0)}, r"--loader.blend-weights is 0.0; it must be from 1e-06"),
        ({"blend_weights": (1.0, float("nan"))}, r"--loader.blend-weights is nan"),
        ({"selection": "some"}, r"there is no selection 'some'"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(parts, changes, says):
    with pytest.raises(ValueError, match=says) as error:
        blend(parts, **changes)
    assert "\n" not in str(error.value)


def test_datasets_that_do_not_go_together_are_refused_before_the_first_step(make):
    three = make(name="three")
    with pytest.raises(ValueError, match=r"a blend has one rig: .*orbit-3, .*orbit-4"):
        blend([three, make(views=4, name="four")])
    with pytest.raises(ValueError, match=r"a blend has one resolution: .* has 16, .* has 8"):
        blend([three, make(name="small", resolution=8)])
    assert len(blend([three, make(name="two", resolution=8)], resolution=8).parts) == 2


def test_states_of_other_blends_are_refused(parts):
    one = blend(parts)
    with pytest.raises(ValueError, match="not the state of a blend"):
        one.resume("{}")
    with pytest.raises(ValueError, match="format 3; this spinset reads 2"):
        one.resume(one.state().to_json().replace('"format": 2', '"format": 3'))
    with pytest.raises(ValueError, match="saved with seed 5"):
        one.resume(blend(parts, seed=5).state().to_json())
    with pytest.raises(ValueError, match="another dataset"):
        one.resume(blend(parts[::-1]).state().to_json())
    with pytest.raises(ValueError, match="not the state of a blend"):
        one.resume(one.parts[0].state().to_json())
    with pytest.raises(ValueError, match="not the state of a loader"):
        one.parts[0].resume(one.state().to_json())
