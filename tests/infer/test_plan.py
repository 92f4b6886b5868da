import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.plan import ANCHORS, AT_ONCE, nearest_anchors, plan_views, ring


@pytest.mark.parametrize(("views", "calls"), [(48, 9), (88, 17), (128, 25), (8, 1)])
def test_turntables_fill_whole_calls(views, calls):
    plan = plan_views(ring(views), np.zeros(views))
    assert len(plan.calls) == calls
    assert len(plan.azimuth) == views
    assert plan.calls[0].given == (0,)
    assert all(len(call.made) == AT_ONCE and len(call.given) == 3 for call in plan.calls[1:])


@pytest.mark.parametrize(
    ("azimuth", "anchors"),
    [(60, (45, 90)), (10, (45, -45)), (-10, (-45, 45)), (170, (180, 135)), (-170, (180, -135)), (-120, (-135, -90))],
)
def test_views_lie_between_their_anchors(azimuth, anchors):
    assert {ANCHORS[place - 1] for place in nearest_anchors(float(azimuth))} == set(anchors)


def test_without_a_photo_the_front_is_made_with_the_anchors():
    plan = plan_views(ring(48), np.zeros(48), photos=0)
    assert plan.calls[0].given == ()
    assert plan.calls[0].made == tuple(range(8))
    assert len(plan.calls) == 9


def test_anchors_stay_at_the_level_of_the_photo():
    plan = plan_views(np.array([0.0, 45.0, 90.0]), np.full(3, 20.0))
    assert (plan.elevation[:8] == 0).all()
    assert (plan.elevation[list(plan.wanted)] == 20).all()


@given(st.lists(st.tuples(st.floats(-720, 720), st.floats(-80, 80)), min_size=1, max_size=40), st.integers(0, 1))
def test_any_directions_are_made_once_and_from_what_is_there(directions, photos):
    azimuth, elevation = (np.array(column) for column in zip(*directions, strict=True))
    plan = plan_views(azimuth, elevation, photos)
    there = {0} if photos else set()
    for call in plan.calls:
        assert there >= set(call.given)
        assert not there & set(call.made)
        assert len(call.given) + len(call.made) <= 8
        there |= set(call.made)
    assert there == set(range(len(plan.azimuth)))
    wanted = list(plan.wanted)
    assert np.allclose(np.cos(np.radians(plan.azimuth[wanted] - azimuth)), 1, atol=1e-9)
    assert np.allclose(plan.elevation[wanted], elevation, atol=1e-5)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "says"),
    [([], [], "no views are asked for"), ([0.0], [90.0], "elevation 90 has no upright view; stay within 90")],
)
def test_directions_that_cannot_be(azimuth, elevation, says):
    with pytest.raises(ValueError, match=says):
        plan_views(np.array(azimuth), np.array(elevation))
