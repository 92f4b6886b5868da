"""Worker processes of one machine: what one costs that dies, hangs or breaks, and several commands that share a dataset."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import pytest
from workers import COMMIT, PER_SHARD, Maker, hashes, ledger_of, make

from jobs import process_pool
from jobs.pool import PoolConfig, begin_of_part
from jobs.process_pool import ProcessPool, _Process
from jobs.units import ATTEMPTS, PATIENCE, Event, Unit, WorkersKeepDying
from jobs.work import Work
from manifests.dataset import Dataset
from manifests.verify import verify

ONE = PoolConfig(workers=2, part="0/1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    """The hashes of a dataset of 24 identities that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "heads"
    return hashes(make(Maker(str(out), 24), PoolConfig(inline=True)))


def failures(dataset: Dataset) -> dict[int, str]:
    rows = dataset.all_identities.to_pylist()
    assert sorted(row["identity"] for row in rows) == list(range(dataset.plan.identities))
    return {row["identity"]: row["reason"] for row in rows if row["outcome"] == "failed"}


def unharmed(dataset: Dataset, but: set[int]) -> dict[str, str]:
    """The hashes of a dataset without those of some identities' shards."""
    names = {f"heads-{identity // PER_SHARD:06d}" for identity in but}
    return {file: value for file, value in hashes(dataset).items() if Path(file).name.split(".")[0] not in names}


def test_faults_cost_what_they_touch(tmp_path, undisturbed):
    """Items that are fatal are given up with their cause, those that were once are made, and all others as if nothing was."""
    notes = tmp_path / "notes"
    notes.mkdir()
    faults = {1: "raise", 5: "die", 6: "die-once", 10: "break", 18: "memory"}
    dataset = make(Maker(str(tmp_path / "heads"), 24, faults, str(notes)), ONE)
    last = f"at stage views, the last of {ATTEMPTS} that were lost to it"
    assert failures(dataset) == {
        1: "OSError: it cannot be made",
        5: f"its worker was killed by SIGKILL {last}",
        10: f"its worker broke (the device is lost) {last}",
        18: f"its worker broke (no memory is left) {last}",
    }
    spared = make(Maker(str(tmp_path / "same"), 24, {1: "raise"}), PoolConfig(inline=True))
    assert unharmed(dataset, {5, 10, 18}) == unharmed(spared, {5, 10, 18})
    begun = [int(file.name.split("-")[0]) for file in notes.iterdir()]
    # Out of memory beside another worker counts against nothing; the unit runs alone then.
    assert begun.count(5) == begun.count(10) == ATTEMPTS <= begun.count(18) <= ATTEMPTS + 1
    losses = ledger_of(str(tmp_path / "heads")).losses(5 // PER_SHARD)
    assert [(loss.item, loss.stage) for loss in losses if loss.item == 5][-1] == (5, "views")
    assert not list((tmp_path / "heads" / "work" / "generate").glob("*-*")), "a lease or a sign of life was left"


def test_an_item_that_hangs_is_given_up(tmp_path, monkeypatch):
    """The clock of the driver stands still but for an hour after each event that precedes a hang.

    From the second time on every stage of the item is reported.
    """
    now, stages = [0.0], []

    def on_event(event: Event) -> None:
        if event.item == 3:
            stages.append(event.stage)
            if event.stage == "views" or stages == ["head"]:
                now[0] += 3600

    monkeypatch.setattr(process_pool, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    dataset = make(Maker(str(tmp_path / "heads"), 8, {3: "hang"}), PoolConfig(workers=1, part="0/1"), on_event)
    assert set(failures(dataset)) == {3}
    last = f"the last of {ATTEMPTS} that were lost to it"
    assert failures(dataset)[3] == f"its worker fell silent for 30 minutes at stage views, {last}"


def test_attempts_survive_the_driver(tmp_path):
    """An item that killed two workers of one command kills one of the next, and is given up."""
    seen: list[Event] = []

    def on_event(event: Event) -> None:
        seen.append(event)
        if sum(one.item == 1 and one.stage == "head" for one in seen) == ATTEMPTS:
            raise InterruptedError

    notes = tmp_path / "notes"
    notes.mkdir()
    maker = Maker(str(tmp_path / "heads"), 4, {1: "die"}, str(notes))
    with pytest.raises(InterruptedError):
        make(maker, PoolConfig(workers=1, part="0/1"), on_event)
    assert len(ledger_of(maker.out).losses(0)) == ATTEMPTS - 1
    assert set(failures(make(maker, PoolConfig(workers=1, part="0/1")))) == {1}
    assert len(list(notes.glob("1-*"))) <= ATTEMPTS + 1, "the worker at hand when the first command ended, and one more"


def test_workers_that_die_at_commit_are_not_blamed_on_an_item(tmp_path):
    maker = Maker(str(tmp_path / "heads"), 4, {COMMIT: "die"})
    with pytest.raises(WorkersKeepDying, match=f"{ATTEMPTS} workers died at stage commit of unit 0"):
        make(maker, PoolConfig(workers=1, part="0/1"))


def test_sigterm_to_a_worker_gives_its_unit_back(tmp_path, undisturbed):
    told: list[int] = []

    def on_event(event: Event) -> None:
        if event.item == 5 and not told:
            told.append(event.item)
            for process in active_children():
                process.terminate()

    dataset = make(Maker(str(tmp_path / "heads"), 24, seconds=0.05), ONE, on_event)
    assert told and hashes(dataset) == undisturbed
    assert not list((tmp_path / "heads" / "work" / "generate").glob("losses/*")), "it was blamed on an item"


def test_sigterm_to_the_driver_ends_after_the_items_in_hand(tmp_path, undisturbed):
    seen: list[Event] = []

    def on_event(event: Event) -> None:
        seen.append(event)
        if event.ends_item and event.item == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    maker = Maker(str(tmp_path / "heads"), 24, seconds=0.5)
    with pytest.raises(KeyboardInterrupt):
        make(maker, PoolConfig(workers=1, part="0/1"), on_event)
    assert not active_children() and seen[-1].ends_item
    assert hashes(make(Maker(maker.out, 24), ONE)) == undisturbed


def start(out: Path, part: str, notes: Path, seconds: float = 0.05, workers: int = 1) -> subprocess.Popen[bytes]:
    """A command of its own that makes a part of a dataset of 24 identities."""
    arguments = [str(out), "24", str(seconds), part, str(workers), str(notes)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])])
    return subprocess.Popen([sys.executable, "-m", "workers", *arguments], env={**os.environ, "PYTHONPATH": path})


def test_six_parts_finish_what_two_of_them_left(tmp_path, undisturbed):
    """Two parts are killed for good, each with an identity in hand."""
    out, notes = tmp_path / "heads", tmp_path / "notes"
    notes.mkdir()
    parts = [start(out, f"{part}/6", notes, 0.3) for part in range(6)]
    while not any(notes.iterdir()):
        time.sleep(0.05)
    for part in parts[:2]:
        part.kill()
    assert [part.wait() for part in parts] == [-signal.SIGKILL] * 2 + [0] * 4
    assert hashes(Dataset(str(out))) == undisturbed
    assert list(verify(Dataset(str(out)), deep=True)) == []


def test_parts_divide_the_work(tmp_path):
    """No identity is made twice by two commands that live."""
    out, notes = tmp_path / "heads", tmp_path / "notes"
    notes.mkdir()
    parts = [start(out, f"{part}/2", notes, 0.1) for part in range(2)]
    assert [part.wait() for part in parts] == [0, 0]
    begun = sorted(int(file.name.split("-")[0]) for file in notes.iterdir())
    assert begun == list(range(24))
    assert len({file.name.split("-")[1] for file in notes.iterdir()}) == 2


@pytest.mark.parametrize(
    ("part", "environ", "begin"),
    [
        ("0/4", {}, 0.0),
        ("3/4", {}, 0.75),
        ("auto", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "8"}, 0.25),
        ("auto", {"SKYPILOT_JOB_RANK": "1", "SKYPILOT_NUM_JOBS": "2"}, 0.5),
        ("auto", {"JOB_COMPLETION_INDEX": "0"}, 0.0),
        ("auto", {"JOB_COMPLETION_INDEX": "1"}, 0.5),
        ("auto", {"JOB_COMPLETION_INDEX": "6"}, 0.375),
    ],
)
def test_where_a_part_begins(part, environ, begin):
    assert begin_of_part(part, environ) == begin


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"part": "4/4"}, "--part is '4/4'; it must be auto or I/N with I from 0 to N - 1"),
        ({"part": "x"}, "--part is 'x'"),
        ({"part": "auto"}, "--part auto needs one of SLURM_ARRAY_TASK_ID"),
        ({"part": "0/2", "ray": "auto"}, "--part runs workers of this machine, without Ray; leave out --ray auto"),
    ],
)
def test_bad_parts(fields, says, monkeypatch):
    for name in ("SLURM_ARRAY_TASK_ID", "SKYPILOT_JOB_RANK", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=says):
        PoolConfig(**fields)


@pytest.mark.parametrize(
    ("share", "seen", "size", "visible"),
    [
        (0.5, "4,7", 4, ["4", "4", "7", "7"]),
        (0.4, "0,1", 4, ["0", "0", "1", "1"]),
        (1.0, "0,1", 2, ["0", "1"]),
        (2.0, "0,1,2,3", 2, ["0,1", "2,3"]),
        (0.0, "0", 8, [""] * 8),
    ],
)
def test_gpus_of_workers(share, seen, size, visible, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    config = PoolConfig(gpus_per_worker=share, part="0/1")
    assert process_pool._fits(config, 8, seen.count(",") + 1) == size
    assert [process_pool._visible_gpus(share, worker) for worker in range(size)] == visible


def test_a_share_that_cuts_a_gpu():
    with pytest.raises(
        ValueError, match=r"--gpus-per-worker is 1.5; with --part it must be a whole number or at most 1"
    ):
        process_pool._fits(PoolConfig(gpus_per_worker=1.5, part="0/1"), 8, 4)


def test_a_worker_that_loads_its_models_may_be_silent_longer(tmp_path, monkeypatch):
    now, lost = [0.0], []
    monkeypatch.setattr(process_pool, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(ProcessPool, "_lose", lambda self, one, cause, is_memory=False: lost.append((one, cause)))
    with ledger_of(str(tmp_path)) as ledger:
        pool = ProcessPool(Work([], ledger), partial(Maker, str(tmp_path), 4), ONE)
        starting, working = (_Process(pool.context.Process(), None, "", Unit(0)) for _ in range(2))
        working.last = Event(0, 0, "head", 0, 2)
        pool.workers = [starting, working]
        now[0] = 60 * ONE.stall_minutes + 1
        pool._replace_stalled()
        assert lost == [(working, "fell silent for 30 minutes")]
        now[0] *= PATIENCE
        pool._replace_stalled()
        assert lost[1] == (starting, "fell silent for 30 minutes")


def test_a_second_command_says_that_there_is_another(tmp_path, capsys):
    maker = Maker(str(tmp_path / "heads"), 4)
    make(maker, PoolConfig(inline=True))
    assert capsys.readouterr().err == ""
    maker = Maker(str(tmp_path / "more"), 4)
    with ledger_of(maker.out):
        make(maker, PoolConfig(inline=True))
    assert "1 other command is at work on" in capsys.readouterr().err
