"""Recipes: each picks what its paper says it picks, of any identity that it accepts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geometry.directions import angular_distance, turned, wrapped
from manifests.draws import generator
from manifests.index import open_index
from train.data.sampling import (
    Anchors,
    Arc,
    FrontBack,
    MultiView,
    Portraits,
    RandomK,
    Ring,
    SingleView,
    open_control,
    samples,
    unable,
)

RECIPES = (
    SingleView(),
    MultiView(),
    MultiView(nearest=True),
    RandomK(),
    Arc(),
    Arc(reverse=True),
    FrontBack(),
    Anchors(),
    Ring(),
)


def rig(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Directions as datasets have them: SpinMeRound's jittered 125, DiffPortrait360's ring of 72."""
    if kind == "ring":
        return (5.0 * np.arange(72) + 180) % 360 - 180, np.zeros(72)
    rng = np.random.default_rng(seed)
    azimuth, elevation = np.meshgrid(14.4 * np.arange(25), [-23, -11.5, 0, 11.5, 23])
    azimuth = azimuth.ravel() + rng.uniform(-7.2, 7.2, 125)
    return (azimuth + 180) % 360 - 180, (elevation.ravel() + rng.uniform(-5.75, 5.75, 125)).clip(-23, 23)


def picks(recipe, kind: str, count: int = 600):
    azimuth, elevation = rig(kind)
    return [(azimuth, elevation, recipe.pick(generator(0, "test", i), azimuth, elevation)) for i in range(count)]


@settings(deadline=None)
@given(st.sampled_from(RECIPES), st.integers(1, 60), st.integers(0, 2**32))
def test_who_is_accepted_is_served(recipe, views, seed):
    rng = np.random.default_rng(seed)
    azimuth, elevation = rng.uniform(-180, 180, views), rng.uniform(-15, 15, views)
    if recipe.lacks(azimuth, elevation):
        return
    positions, is_condition = recipe.pick(rng, azimuth, elevation)
    assert len(positions) == len(is_condition) == recipe.views == len(set(positions.tolist()))
    assert positions.min() >= 0 and positions.max() < views
    assert (np.diff(is_condition.astype(int)) <= 0).all()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["grid", "ring"])
def test_the_papers_rigs_serve_all_recipes(recipe, kind):
    assert not recipe.lacks(*rig(kind))


def test_a_pick_depends_on_its_generator_alone():
    azimuth, elevation = rig("grid")
    for recipe in RECIPES:
        one, two = (recipe.pick(generator(3, "sample", 1, 2), azimuth, elevation) for _ in range(2))
        assert np.array_equal(one.positions, two.positions) and np.array_equal(one.is_condition, two.is_condition)


def test_conditions_are_one_nought_or_three_equally_often_and_begin_with_a_face():
    counts = Counter()
    for azimuth, elevation, (positions, is_condition) in picks(MultiView(), "grid", 1500):
        counts[int(is_condition.sum())] += 1
        if is_condition.any():
            assert turned(azimuth)[positions[0]] <= 60 and abs(elevation[positions[0]]) <= 30
    assert set(counts) == {0, 1, 3}
    assert all(abs(n - 500) < 4 * np.sqrt(1500 * 2 / 9) for n in counts.values())


def test_further_conditions_and_targets_are_anywhere():
    three = picks(MultiView(conditions=(3,)), "grid", 1500)
    for position in (1, 2, 3, 7):
        turns = np.array([turned(azimuth)[pick.positions[position]] for azimuth, _, pick in three])
        assert np.histogram(turns, 3, (0, 180))[0] == pytest.approx(500, abs=90)


def test_nearest_targets_are_nearer_than_any_other_view():
    for azimuth, elevation, (positions, is_condition) in picks(MultiView(nearest=True), "grid", 200):
        given = positions[: max(is_condition.sum(), 1)]
        away = np.min([angular_distance(azimuth, elevation, azimuth[g], elevation[g]) for g in given], 0)
        others = np.setdiff1d(np.arange(len(azimuth)), positions)
        assert away[positions].max() <= away[others].min()


def test_arcs_walk_the_ring_at_strides_of_two_to_six():
    strides = Counter()
    starts = Counter()
    for azimuth, _, (positions, _) in picks(Arc(), "ring", 1500):
        steps = np.diff(azimuth[positions]) % 360
        assert len(set(steps.tolist())) == 1
        strides[steps[0]] += 1
        starts[int(positions[0])] += 1
    assert sorted(strides) == [10, 15, 20, 25, 30]
    assert all(abs(n - 300) < 70 for n in strides.values())
    assert len(starts) == 72


def test_arcs_are_reversed_half_of_the_time_if_asked():
    steps = [
        (np.diff(azimuth[p.positions])[:1] + 180) % 360 - 180 for azimuth, _, p in picks(Arc(reverse=True), "ring")
    ]
    assert 0.4 < np.mean(np.array(steps) < 0) < 0.6


def test_arcs_never_lap_a_small_ring():
    azimuth, elevation = 24.0 * np.arange(15), np.zeros(15)
    for i in range(50):
        positions = Arc().pick(generator(0, "test", i), azimuth, elevation).positions
        assert (np.diff(azimuth[positions]) % 360).tolist() == [48.0] * 7
    assert Arc().lacks(azimuth[:14], elevation[:14]) == "has 14 views within 6 degrees of elevation 0, an arc needs 15"


def test_front_and_back_overlap_as_little_as_they_can():
    fronts = set()
    for azimuth, elevation, ((front, back), is_condition) in picks(FrontBack(), "grid", 300):
        assert turned(azimuth)[front] <= 40 and turned(azimuth)[back] >= 145
        assert is_condition.tolist() == [True, False]
        behind = np.flatnonzero(turned(azimuth) >= 145)
        assert angular_distance(azimuth, elevation, azimuth[front], elevation[front])[behind].max() == pytest.approx(
            angular_distance(azimuth[[back]], elevation[[back]], azimuth[front], elevation[front])[0]
        )
        fronts.add(int(front))
    assert len(fronts) > 20


def test_anchors_are_where_the_paper_puts_them():
    azimuth, elevation = rig("ring")
    positions, is_condition = Anchors().pick(generator(0, "test"), azimuth, elevation)
    assert azimuth[positions].tolist() == [0, 45, -45, 90, -90, 135, -135, -180]
    assert is_condition.tolist() == [True] + [False] * 7
    ring = Ring(12).pick(generator(0, "test"), azimuth, elevation)
    assert (azimuth[ring.positions] % 360).tolist() == [30.0 * k for k in range(12)]
    assert not ring.is_condition.any()


@pytest.mark.parametrize(
    ("recipe", "azimuth", "reason"),
    [
        (MultiView(views=2, conditions=(1,)), [90.0, 180.0], "no view turned at most 60"),
        (MultiView(), [0.0, 90.0], "has 2 views, a sample needs 8"),
        (RandomK(3), [0.0, 90.0], "needs 3"),
        (FrontBack(), [180.0], "no view turned at most 40"),
        (FrontBack(), [0.0], "no view turned 145"),
        (Anchors((0.0, 90.0)), [0.0, 60.0], "no view within 15 degrees of azimuth 90"),
        (Anchors((0.0, 10.0), given=0), [5.0, 180.0], "nearest to two anchors"),
        (Ring(4), [0.0, 90.0, -90.0], "azimuth 180"),
    ],
)
def test_who_cannot_be_served_is_told_why(recipe, azimuth, reason):
    assert reason in recipe.lacks(np.array(azimuth), np.zeros(len(azimuth)))


@pytest.mark.parametrize(
    ("recipe", "fields"),
    [
        (MultiView, {"views": 3}),
        (MultiView, {"conditions": ()}),
        (RandomK, {"views": 0}),
        (Arc, {"strides": (4, 2)}),
        (Arc, {"strides": (0, 2)}),
        (FrontBack, {"max_turn": 150.0}),
        (Anchors, {"azimuths": ()}),
        (Anchors, {"given": 8}),
        (Ring, {"views": 0}),
    ],
)
def test_recipes_that_cannot_be(recipe, fields):
    with pytest.raises(ValueError, match=r"\d"):
        recipe(**fields)


def test_samples_are_views_or_identities(make):
    subset = open_index(make(identities=5, views=3)).select()
    assert samples(SingleView(), subset) == 15
    assert samples(RandomK(3), subset) == 5
    assert unable(RandomK(3), subset) == {}
    assert set(unable(RandomK(4), subset)) == {0, 1, 2, 3, 4}
    assert unable(SingleView(), subset) == {}


def test_control_is_somebody_else_at_the_same_views(make):
    dataset = make(identities=6, views=3)
    subset = open_index(dataset).select().restricted_to(np.array([1, 1, 0, 1, 0, 1], bool))
    control = open_control(subset, dataset.plan.rig)
    index = subset.index
    others = Counter()
    for i in range(300):
        rows = control.rows(generator(0, "control", i), 1, np.array([2, 0], np.int16))
        assert index.view[rows].tolist() == [2, 0]
        others.update(set(index.identity[rows].tolist()))
    assert set(others) == {0, 3, 5} and min(others.values()) > 60


def test_control_needs_a_grid_and_two_whole_identities(make):
    dataset = make(identities=2, views=3)
    subset = open_index(dataset).select()
    rig = dataset.plan.rig
    open_control(subset, rig)
    with pytest.raises(ValueError, match="--grid"):
        open_control(subset, {**rig, "azimuth_jitter": 7.2})
    with pytest.raises(ValueError, match="1 of 1 identities have all 3"):
        open_control(subset.restricted_to(np.array([True, False])), rig)
    with pytest.raises(ValueError, match="0 of 2 identities have all 4"):
        open_control(subset, {**rig, "azimuth": [0.0] * 4})


def test_portraits_are_references_of_the_lists_and_then_the_views():
    azimuth = np.array([wrapped(5.0 * k) for k in range(72)], np.float32)
    level, turn = np.zeros_like(azimuth), np.abs(azimuth)
    fronts, backs = Counter(), Counter()
    for i in range(600):
        recipe = Portraits(reverse=i % 2 == 1)
        positions, is_condition = recipe.pick(generator(0, "portraits", i), azimuth, level)
        assert is_condition.tolist() == [True] * 2 + [False] * 8
        assert turn[positions[0]] <= 40 and turn[positions[1]] >= 145
        fronts[int(positions[0])] += 1
        backs[int(positions[1])] += 1
        steps = {int(step) for step in np.diff(azimuth[positions[2:]]) % 360}
        (step,) = steps
        assert step in ({10, 15, 20, 25, 30} if i % 2 == 0 else {10, 15, 20, 25, 30, 330, 335, 340, 345, 350})
    assert len(fronts) == 17 and len(backs) == 15


@pytest.mark.parametrize(
    ("recipe", "count", "turns"),
    [
        (Portraits(count=1, targets="back", back=False, min_turn=150.0), 2, (150, 180)),
        (Portraits(count=4, targets="random"), 6, (0, 180)),
    ],
)
def test_portraits_of_other_views(recipe, count, turns):
    azimuth = np.array([wrapped(10.0 * k) for k in range(36)], np.float32)
    seen = set()
    for i in range(200):
        positions, is_condition = recipe.pick(generator(0, "portraits", i), azimuth, np.zeros_like(azimuth))
        views = positions[~is_condition]
        assert len(positions) == count == recipe.views and len(set(views.tolist())) == len(views)
        seen |= set(np.abs(azimuth[views]).tolist())
    assert (min(seen), max(seen)) == turns


def test_portraits_need_their_references():
    azimuth, level = np.array([0.0, 60.0, 120.0], np.float32), np.zeros(3, np.float32)
    assert Portraits().lacks(azimuth, level) == "has no view turned 145 degrees"
    assert Portraits().lacks(azimuth + 90, level) == "has no view turned at most 40 degrees"
    assert "an arc needs 15" in Portraits(back=False).lacks(azimuth, level)
    assert Portraits(count=3, targets="random", back=False).lacks(azimuth, level) == ""
