import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geometry.cameras import azimuth_elevation
from infer.views import ANCHORS, ONE_STAGE_VIEWS, SECOND_STAGE_VIEWS, nearest_anchors, plan_views, ring


@pytest.mark.parametrize(("views", "calls"), [(48, 9), (88, 17), (128, 25), (8, 1)])
def test_turntables_fill_whole_calls(views, calls):
    plan = plan_views(ring(views), np.zeros(views))
    assert len(plan.calls) == calls
    assert len(plan.azimuth) == views
    assert plan.calls[0].given == (0,)
    assert all(len(call.sampled) == SECOND_STAGE_VIEWS and len(call.given) == 3 for call in plan.calls[1:])


@pytest.mark.parametrize(
    ("azimuth", "anchors"),
    [(60, (45, 90)), (10, (45, -45)), (-10, (-45, 45)), (170, (180, 135)), (-170, (180, -135)), (-120, (-135, -90))],
)
def test_views_lie_between_their_anchors(azimuth, anchors):
    assert {ANCHORS[place - 1] for place in nearest_anchors(float(azimuth))} == set(anchors)


def test_without_a_photo_the_front_is_made_with_the_anchors():
    plan = plan_views(ring(48), np.zeros(48), photos=())
    assert plan.calls[0].given == ()
    assert plan.calls[0].sampled == tuple(range(8))
    assert len(plan.calls) == 9


def test_anchors_stay_at_the_level_of_the_photo():
    plan = plan_views(np.array([0.0, 45.0, 90.0]), np.full(3, 20.0))
    assert (plan.elevation[:8] == 0).all()
    assert (plan.elevation[list(plan.wanted)] == 20).all()


@given(st.lists(st.tuples(st.floats(-720, 720), st.floats(-80, 80)), min_size=1, max_size=40), st.integers(0, 1))
def test_any_directions_are_made_once_and_from_what_is_there(directions, photos):
    azimuth, elevation = (np.array(column) for column in zip(*directions, strict=True))
    plan = plan_views(azimuth, elevation, (0.0,) * photos)
    there = {0} if photos else set()
    for call in plan.calls:
        assert there >= set(call.given)
        assert not there & set(call.sampled)
        assert len(call.given) + len(call.sampled) <= 8
        there |= set(call.sampled)
    assert there == set(range(len(plan.azimuth)))
    wanted = list(plan.wanted)
    assert np.allclose(np.cos(np.radians(plan.azimuth[wanted] - azimuth)), 1, atol=1e-9)
    assert np.allclose(plan.elevation[wanted], elevation, atol=1e-5)


def test_released_angles_roll_the_view_of_a_side_instead_of_raising_it():
    azimuth, elevation = np.array([0.0, 90.0, 90.0]), np.array([16.0, 0.0, 16.0])
    orbit_plan, released = (plan_views(azimuth, elevation, stages=1, angles=a) for a in ("orbit", "spinmeround"))
    wanted = list(released.wanted)
    ours, theirs = (azimuth_elevation(plan.cameras[wanted].c2w)[1] for plan in (orbit_plan, released))
    assert torch.allclose(ours, torch.tensor([16.0, 0.0, 16.0]), atol=1e-3)
    assert torch.allclose(theirs, torch.tensor([16.0, 0.0, 0.0]), atol=1e-3)
    # From the side both cameras of the released code stand in one place, and the second is rolled by the pitch.
    level, rolled = released.cameras[wanted].view_rotation[1:]
    assert torch.rad2deg(torch.atan2(*(rolled @ level.T)[:2, 0].flip(0).abs())).item() == pytest.approx(16, abs=1e-3)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "says"),
    [([], [], "no views are asked for"), ([0.0], [90.0], "elevation 90 has no upright view; stay within 90")],
)
def test_directions_that_cannot_be(azimuth, elevation, says):
    with pytest.raises(ValueError, match=says):
        plan_views(np.array(azimuth), np.array(elevation))


@given(st.lists(st.tuples(st.floats(-720, 720), st.floats(-80, 80)), min_size=1, max_size=40), st.integers(0, 1))
def test_in_one_stage_every_view_is_sampled_from_the_photo_alone(directions, photos):
    azimuth, elevation = (np.array(column) for column in zip(*directions, strict=True))
    plan = plan_views(azimuth, elevation, (0.0,) * photos, stages=1)
    assert all(call.given == (0,) * photos and len(call.sampled) <= ONE_STAGE_VIEWS for call in plan.calls)
    sampled = [position for call in plan.calls for position in call.sampled]
    assert sorted(sampled) == sorted(set(plan.wanted) - set(plan.photos))
    sizes = [len(call.sampled) for call in plan.calls]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    numbers = plan.call_numbers
    assert all((number < 0) == (position in plan.photos) for number, position in zip(numbers, plan.wanted, strict=True))


def test_further_photos_are_given_to_the_first_call_and_never_sampled():
    plan = plan_views(ring(88), np.zeros(88), (0.0, 90.0, 380.0, -ring(88)[1]))
    assert [plan.azimuth[place] for place in plan.photos] == pytest.approx([0, 90, 20, -ring(88)[1]])
    assert plan.calls[0].given == plan.photos
    assert not {place for call in plan.calls for place in call.sampled} & set(plan.photos)
    with pytest.raises(ValueError, match=r"two photos are turned by 90 degrees; give each its own side"):
        plan_views(ring(8), np.zeros(8), (0.0, 90.0, 450.0))


def test_the_photo_may_stand_above_eye_level():
    plan = plan_views(np.array([45.0, 10.0]), np.array([12.0, 0.0]), photo_elevation=12.0)
    assert (plan.elevation[:8] == 12).all() and plan.wanted[0] == 1
    assert plan.cameras.positions[0, 1] == pytest.approx(2.7 * np.sin(np.radians(12.0)), abs=1e-5)
