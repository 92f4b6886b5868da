"""What comes next, and what is to blame: decisions of a driver without workers."""

from types import SimpleNamespace

import pytest

from jobs import work as module
from jobs.ledger import Ledger
from jobs.units import ATTEMPTS, Event, Unit, WorkersKeepDying
from jobs.work import LOOK, SLOW, Work
from manifests.storage import Storage


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def ledger(tmp_path):
    with Ledger(Storage(tmp_path), "generate", lambda unit: False) as ledger:
        yield ledger


def units(count: int) -> list[Unit]:
    return [Unit(index) for index in range(count)]


def at(unit: int, item: int | None, stage: str = "mesh") -> Event:
    return Event(unit, item, stage, 0, 2)


def test_what_another_driver_holds_is_looked_at_again(tmp_path, ledger, clock):
    work = Work(units(2), ledger)
    with Ledger(Storage(tmp_path), "generate", lambda unit: False) as other:
        assert other.claim(0)
        assert work.next("a").index == 1
        assert work.next("a") is None and work.remains
        clock.now = LOOK + 1
        assert work.next("a") is None and not work.waiting
    clock.now += LOOK + 1
    assert work.waiting == 1, "a worker is started for it, if there is none"
    assert work.next("a").index == 0


def test_no_unit_is_forgotten_when_others_are_looked_at(tmp_path, ledger, clock):
    work = Work(units(4), ledger)
    with Ledger(Storage(tmp_path), "generate", lambda unit: False) as other:
        assert other.claim(0)
        assert work.next("a").index == 1
        clock.now += LOOK + 1
        assert work.waiting == 3
    assert sorted(work.next("a").index for _ in range(3)) == [0, 2, 3]


def test_many_that_are_done_are_left_out_by_one_listing(tmp_path, clock):
    """They are asked for one after the other only until it is plain that there are many."""
    done, asked, seen = set(range(100)) - {50}, [], []
    with Ledger(
        Storage(tmp_path), "generate", lambda unit: asked.append(unit) or unit in done, all_done=lambda: done
    ) as ledger:
        work = Work(units(100), ledger, seen.append)
        assert work.next("a").index == 50
    assert sorted({event.unit for event in seen}) == sorted(done) and len(asked) < 10
    assert not work.todo


def test_what_is_done_meanwhile_is_left_out(tmp_path, clock):
    done = {0, 2}
    with Ledger(Storage(tmp_path), "generate", done.__contains__) as ledger:
        work = Work(units(4), ledger)
        assert [work.next("a").index, work.next("a").index] == [1, 3]
        assert work.next("a") is None
        assert ledger.storage.names("work/generate/leases") == ["1.0", "3.0"]


def test_an_item_is_given_up_after_some_losses_and_watched_before(ledger, clock):
    work = Work(units(1), ledger)
    for attempt in range(ATTEMPTS):
        unit = work.next("a")
        assert unit.watched == ({5} if attempt else set()) and not unit.skipped
        work.lost(unit, at(0, 5), "died", "a")
    reason = "its worker died at stage mesh, the last of 3 that were lost to it"
    assert work.next("a").skipped == {5: reason}
    assert Work(units(1), ledger).next("a").skipped == {5: reason}, "the next command knows it"


def test_a_machine_that_is_gone_blames_nothing(ledger, clock):
    work = Work(units(1), ledger)
    for _ in range(2 * ATTEMPTS):
        work.given_back(work.next("a"), "a")
    assert work.next("a") == Unit(0) and ledger.losses(0) == []


@pytest.mark.parametrize("last", [None, at(0, None, "commit")])
def test_losses_without_an_item_end_the_job(ledger, clock, last):
    work = Work(units(1), ledger)
    for _ in range(ATTEMPTS - 1):
        work.lost(work.next("a"), last, "died", "a")
    unit = work.next("a")
    with pytest.raises(WorkersKeepDying, match=f"{ATTEMPTS} workers died"):
        work.lost(unit, last, "died", "a")
    work = Work(units(1), ledger)
    work.lost(work.next("a"), last, "died", "a")  # another command tries as often


def test_memory_is_blamed_only_on_an_item_that_ran_alone(ledger, clock):
    work = Work(units(3), ledger)
    first, second = work.next("a"), work.next("a")
    work.lost(first, at(0, 1), "ran out of memory", "a", is_memory=True)
    assert work.next("a") is None, "the machine is emptied for it"
    assert work.next("b").index == 2, "and no other one"
    work.finished(second, "a")
    for _ in range(ATTEMPTS):
        alone = work.next("a")
        assert alone.index == 0 and not alone.skipped and work.next("a") is None
        work.lost(alone, at(0, 1), "ran out of memory", "a", is_memory=True)
    assert set(work.next("a").skipped) == {1}
    assert [loss.blamed for loss in ledger.losses(0)] == [False, *[True] * ATTEMPTS]


def test_a_machine_where_everything_fails_is_left_out_and_nothing_blamed(ledger, clock, capsys):
    work = Work(units(6), ledger)
    good = work.next("good")
    for index in (1, 2):
        unit = work.next("bad")
        assert unit.index == index
        work.lost(unit, at(index, 10 * index), "died", "bad")
        work.todo.rotate(-1)
    work.lost(work.next("bad"), at(3, 30), "died", "bad")
    assert "bad is left out: 3 items in a row were lost there" in capsys.readouterr().err
    assert work.next("bad") is None
    work.finished(good, "good")
    rest = [work.next("good") for _ in range(5)]
    assert sorted(unit.index for unit in rest) == [1, 2, 3, 4, 5]
    assert all(not loss.blamed for index in (1, 2, 3) for loss in ledger.losses(index))


def test_an_only_machine_is_not_left_out(ledger, clock):
    work = Work(units(4), ledger)
    for index in range(4):
        work.lost(work.next("a"), at(index, 10 * index), "died", "a")
        work.todo.rotate(-1)
    assert work.next("a") is not None


def test_an_idle_worker_repeats_the_slowest_unit(ledger, clock):
    work = Work(units(5), ledger)
    slow, later = work.next("a"), None
    for _ in range(3):
        unit = work.next("b")
        clock.now += 10
        work.finished(unit, "b")
    later = work.next("b")
    assert work.next("c") == slow, "it runs three times as long as the others"
    assert work.next("c") is None, "the other one does not"
    work.finished(slow, "c")
    assert not work.is_open(slow) and work.is_open(later)
    work.given_back(slow, "a")
    work.finished(later, "b")
    assert not work.remains
    assert SLOW * 10 < 30


def test_a_repeated_unit_goes_on_if_one_of_its_workers_is_lost(ledger, clock):
    work = Work(units(4), ledger)
    slow = work.next("a")
    for _ in range(3):
        unit = work.next("b")
        clock.now += 10
        work.finished(unit, "b")
    again = work.next("b")
    work.lost(again, at(0, 1), "died", "b")
    assert work.is_open(slow) and not work.waiting
    work.finished(slow, "a")
    assert not work.remains


def test_a_unit_that_a_worker_was_lost_with_is_not_repeated(ledger, clock):
    """Its two runs might leave out different items."""
    work = Work(units(4), ledger)
    work.next("a")
    for _ in range(3):
        unit = work.next("b")
        clock.now += 10
        work.finished(unit, "b")
    work.lost(work.next("b"), at(0, 1), "died", "b")
    assert work.next("b") is None


def test_three_of_a_machine_out_of_memory_do_not_leave_it_out(ledger, clock):
    work = Work(units(5), ledger)
    begun = [work.next("a") for _ in range(4)]
    other = work.next("b")
    for unit in begun[:3]:
        work.lost(unit, at(unit.index, 4 * unit.index), "ran out of memory", "a", is_memory=True)
    work.finished(begun[3], "a")
    assert not work.left_out and work.next("a").index in (0, 1, 2)
    assert not any(loss.blamed for unit in begun for loss in ledger.losses(unit.index))
    work.finished(other, "b")


def test_a_bad_machine_that_asks_first_is_left_out_all_the_same(ledger, clock):
    """It gets the same unit again and again, whose items are given up one after the other, until it is recognised."""
    work = Work(units(2), ledger)
    good = work.next("good")
    for item in range(4, 8):
        for _ in range(ATTEMPTS):
            if unit := work.next("bad"):
                for skipped in unit.skipped:
                    work.reported(Event(1, skipped, "done", 2, 2), "bad")
                work.lost(unit, at(1, item), "died", "bad")
    assert work.left_out == {"bad"}
    work.finished(good, "good")
    assert work.next("good") == Unit(1), "nothing is blamed on its items"


def test_the_last_machine_works_on_even_if_it_was_left_out(ledger, clock):
    work = Work(units(2), ledger)
    work.next("good")
    work.left_out.add("bad")
    assert work.next("bad") is None
    work.given_back(Unit(0), "good")
    assert work.next("bad") is not None
