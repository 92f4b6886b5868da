"""The global order: the same whatever the ranks, and exact wherever a run goes on."""

import json
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.order import START, TAILS, Cursor, Order, State, check_ranks

orders = st.builds(
    lambda seed, batch, extra, tail: Order(seed, batch + extra, batch, tail),
    st.integers(0, 9),
    st.integers(1, 24),
    st.integers(0, 60),
    st.sampled_from(TAILS),
)


def walk(order: Order, steps: int, cursor: Cursor = START):
    batches = []
    for _ in range(steps):
        batches.append(order.batch_at(cursor))
        cursor = order.after(cursor)
    return batches, cursor


@settings(deadline=None)
@given(orders, st.integers(1, 8), st.integers(1, 4))
def test_every_rank_takes_as_many_steps_and_together_they_take_the_global_order(order, world, epochs):
    order = Order(order.seed, order.samples * world, order.batch * world, order.tail)
    batches, _ = walk(order, order.steps(epochs))
    for batch in batches:
        stripes = [batch.stripe(rank, world).samples for rank in range(world)]
        assert {len(stripe) for stripe in stripes} == {order.batch // world}
        assert np.stack(stripes, 1).ravel().tolist() == batch.samples.tolist()


@settings(deadline=None)
@given(orders)
def test_an_epoch_holds_every_sample_once_as_its_tail_promises(order):
    epochs = 3
    batches, _ = walk(order, order.steps(epochs))
    samples, of, repeated = (np.concatenate(column) for column in zip(*batches, strict=True))
    for epoch in range(epochs):
        own = samples[(of == epoch) & ~repeated]
        assert len(set(own.tolist())) == len(own)
        dropped = order.samples % order.batch if order.tail == "drop" else 0
        assert len(own) == order.samples - dropped
    if order.tail == "pad":
        assert repeated.sum() == epochs * (-order.samples % order.batch)
    else:
        assert not repeated.any()
    if order.tail == "exact":
        assert len(samples) - epochs * order.samples < order.batch
    else:
        assert order.steps(epochs) == epochs * order.steps_per_epoch
        assert set(of.tolist()) == set(range(epochs))


@settings(deadline=None)
@given(orders, st.integers(0, 12))
def test_a_run_goes_on_from_any_step_as_if_it_had_not_stopped(order, done):
    whole, _ = walk(order, done + 8)
    _, cursor = walk(order, done)
    again = Order(order.seed, order.samples, order.batch, order.tail)
    rest, _ = walk(again, 8, cursor)
    for expected, found in zip(whole[done:], rest, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    assert order.steps(5) - order.steps(5, cursor) == min(done, order.steps(5))


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(1, 16), st.integers(1, 16), st.integers(0, 6), st.sampled_from(["pad", "exact"]))
def test_another_batch_size_goes_on_without_loss_or_repeat(seed, before, after, done, tail):
    samples = 40
    first, cursor = walk(Order(seed, samples, before, tail), done)
    order = Order(seed, samples, after, tail)
    second, _ = walk(order, order.steps(4, cursor), cursor)
    seen, of, repeated = (np.concatenate(column) for column in zip(*first, *second, strict=True))
    for epoch in range(min(4, cursor.epoch), 4):
        assert sorted(seen[(of == epoch) & ~repeated].tolist()) == list(range(samples))


def test_padding_repeats_the_start_of_the_epoch_even_several_times():
    order = Order(0, 3, 8, "pad")
    batch = order.batch_at(START)
    assert batch.samples.tolist() == np.resize(order.permutation(0), 8).tolist()
    assert batch.repeated.tolist() == [False] * 3 + [True] * 5
    assert order.after(START) == (1, 0)


def test_shuffle_mixes_identities_as_well_as_chance_can():
    """48 identities of 125 views each, lying together: 35.8 of them in a batch of 64."""
    identities, views, batch = 48, 125, 64
    order = Order(0, identities * views, batch)
    distinct = [len(set((b.samples // views).tolist())) for b in walk(order, 20 * order.steps_per_epoch)[0]]
    absent = comb((identities - 1) * views, batch) / comb(identities * views, batch)
    assert np.mean(distinct) == pytest.approx(identities * (1 - absent), rel=0.01)


def test_epochs_and_seeds_are_shuffled_apart():
    orders = [Order(seed, 1000, 10).permutation(epoch) for seed in (0, 1) for epoch in (0, 1)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).mean() < 0.01


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 3))
def test_a_window_goes_through_a_few_shards_at_a_time(shards, window, epoch):
    of = np.repeat(np.arange(shards) * 3, 5)
    order = Order(0, len(of), 5, window=window, shards=of).permutation(epoch)
    assert sorted(order.tolist()) == list(range(len(of)))
    for first in range(0, len(of), 5 * window):
        assert len(set(of[order[first : first + 5 * window]].tolist())) == min(window, shards - first // 5)


def test_a_window_shuffles_within_and_among_its_groups():
    of = np.repeat(np.arange(40), 50)
    one, two = (Order(0, len(of), 5, window=4, shards=of).permutation(epoch) for epoch in (0, 1))
    assert len(set(of[one[:50]].tolist())) == 4
    assert set(of[one[:200]].tolist()) != set(of[two[:200]].tolist())


def test_an_old_epoch_is_computed_once_and_two_are_kept(monkeypatch):
    computed = []
    original = Order._permute
    monkeypatch.setattr(Order, "_permute", lambda self, epoch: computed.append(epoch) or original(self, epoch))
    order = Order(0, 10, 4, "exact")
    walk(order, 10)
    assert computed == [0, 1, 2, 3]
    assert len(order._permutations) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 4, "loop"), "drop, pad, exact"),
        ((0, 3, 4), "at most 3"),
        ((0, 3, 0), "1 or more"),
        ((0, 8, 4, "drop", 2), "shard of each sample"),
    ],
)
def test_orders_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Order(*arguments)


def test_ranks_must_divide_the_batch():
    check_ranks(12, 2, 3)
    with pytest.raises(ValueError, match="take 63 or 66"):
        check_ranks(64, 0, 3)
    with pytest.raises(ValueError, match=r"take 8$"):
        check_ranks(4, 0, 8)
    with pytest.raises(ValueError, match="ranks count from 0"):
        check_ranks(4, 4, 4)


STATE = State("d" * 64, "s" * 64, "f" * 16, 2**63 - 1, 10**9, 10**6, "exact", 1000, 10**6, 10**9)


def test_a_state_is_small_and_comes_back():
    assert len(STATE.to_json()) < 1000
    assert State.from_json(STATE.to_json()) == STATE
    STATE.check(State(**{**STATE.__dict__, "batch": 7, "epoch": 0, "position": 0}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "x"}, "another dataset"),
        ({"selection": None}, "another selection"),
        ({"sampling": "x"}, "recipe"),
        ({"samples": 3}, "recipe"),
        ({"seed": 3}, "this run has 3"),
        ({"tail": "pad"}, "give tail exact"),
        ({"window": 0}, "give window 1000"),
    ],
)
def test_a_state_of_something_else_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        STATE.check(State(**{**STATE.__dict__, **change}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": 1}', STATE.to_json().replace('"format": 1', '"format": 9')])
def test_what_is_no_state_says_so(text):
    with pytest.raises(ValueError, match="state"):
        State.from_json(text)


@pytest.mark.parametrize("change", [{"position": -3}, {"epoch": -1}, {"position": "much"}])
def test_a_place_that_is_none_is_refused(change):
    text = json.dumps({**json.loads(STATE.to_json()), **change})
    with pytest.raises(ValueError, match="not the state of a loader"):
        State.from_json(text)
