"""What `spinset plan` foretells, against what is made."""

import math
from dataclasses import replace

import pytest
from egg import EggConfig, egg_job

from datagen.estimate import Interval, estimate, workers_of
from datagen.generate import generate
from jobs.pool import PoolConfig
from manifests.dataset import Dataset
from manifests.status import summarise

INLINE = PoolConfig(inline=True)


def test_it_foretells_what_is_made_and_writes_nothing(tmp_path):
    config = egg_job(str(tmp_path / "eggs"), INLINE)
    found = estimate(config)
    assert not (tmp_path / "eggs").exists()
    made = summarise(generate(config))
    assert found.plan.identities * found.views == made.views and found.plan.shards == made.shards
    dataset = Dataset(str(tmp_path / "eggs"))
    tars = sum(dataset.done(shard)["files"][".tar"]["size"] for shard in dataset.committed())
    # A kilobyte ends each tar; it is not counted.
    assert found.bytes.low <= tars <= found.bytes.high + 1024 * made.shards
    assert found.bytes.value == pytest.approx(tars, rel=0.05)
    assert found.seconds.low <= found.seconds.value <= found.seconds.high
    assert "GB" in str(found) and "with 1 worker if" in str(found)


def test_an_interval_is_students():
    """Of a textbook: 1, 2, 3 have mean 2 and standard error 1 / sqrt 3; t of 2 degrees at 95 % is 2.92."""
    found = Interval.of_total([1.0, 2.0, 3.0], 10)
    assert found.value == pytest.approx(20) and found.high == pytest.approx(20 + 10 * 2.92 / 3**0.5, rel=1e-3)
    assert found.low == pytest.approx(20 - 10 * 2.92 / 3**0.5, rel=1e-3)
    assert Interval.of_total([0.0, 10.0], 1).low == 0


def test_time_is_divided_by_workers_that_can_run(tmp_path, monkeypatch):
    """4 shards of 7 eggs: of 64 workers no more than 4 have work, and on 3 cores the busiest makes 2 shards, 4 eggs."""
    monkeypatch.setattr("datagen.estimate.usable_cores", lambda: 3)
    found = estimate(egg_job(str(tmp_path / "eggs"), PoolConfig(workers=64)))
    assert found.workers == 3 and found.elapsed.value == pytest.approx(found.seconds.value * 4 / 7)
    assert "with 3 workers (not 64: no more run at once for 4 shards on this machine)" in str(found)
    assert workers_of(PoolConfig(), 2) == 2 and workers_of(PoolConfig(threads=2), 9) == 1
    assert workers_of(PoolConfig(inline=True, workers=5), 9) == 1


def test_the_cores_of_this_machine_say_nothing_of_a_cluster(tmp_path):
    found = estimate(egg_job(str(tmp_path / "eggs"), PoolConfig(ray="auto")))
    assert found.workers is None and found.elapsed is None
    assert "the number of workers that fit on the Ray cluster, at most 4; give --workers" in str(found)
    assert (
        workers_of(PoolConfig(ray="auto", workers=64), 4) == 4 and workers_of(PoolConfig(ray="auto", workers=3), 4) == 3
    )


def test_heads_that_fail_are_made_twice_and_say_nothing_of_bytes(tmp_path):
    """Of 2 probes one fails, slowly: its time counts twice, and the bytes are those of the other."""
    job = egg_job(str(tmp_path / "eggs"), INLINE, identities=2)
    whole = estimate(job)
    failing = estimate(replace(job, source=EggConfig(faults=((1, "raise"),), slow=0.3)))
    assert len(failing.failed) == 1 and (failing.bytes.low, failing.bytes.high) == (0, math.inf)
    assert failing.bytes.value == pytest.approx(whole.bytes.value, rel=0.2)
    # 0.3 s for the good one, twice 0.3 s for the other.
    assert failing.seconds.value >= 0.9
    assert "if all heads are kept" in str(failing) and "if all heads are kept" not in str(whole)


def test_heads_that_fail_are_told(tmp_path):
    config = egg_job(str(tmp_path / "eggs"), INLINE)
    failing = egg_job(str(tmp_path / "eggs"), INLINE, source=EggConfig(faults=((6, "raise"),)))
    assert estimate(failing).failed[0].startswith("identity 6: ")
    with pytest.raises(ValueError, match="no head can be made: identity 0: "):
        estimate(
            egg_job(
                str(tmp_path / "eggs"), INLINE, source=EggConfig(faults=tuple((seed, "raise") for seed in range(7)))
            )
        )
    with pytest.raises(ValueError, match="--probes is 1; two heads or more tell how much heads differ"):
        estimate(config, 1)
