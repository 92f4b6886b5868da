"""What `spinset plan` foretells, against what is made."""

import pytest
from egg import EggConfig, egg_job

from datagen.estimate import Interval, estimate
from datagen.generate import generate
from jobs.pool import PoolConfig
from jobs.status import summarise
from manifests.dataset import Dataset

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
    assert "GB" in str(found) and "with 1 workers" in str(found)


def test_an_interval_is_students():
    """Of a textbook: 1, 2, 3 have mean 2 and standard error 1 / sqrt 3; t of 2 degrees at 95 % is 2.92."""
    found = Interval.of_total([1.0, 2.0, 3.0], 10)
    assert found.value == pytest.approx(20) and found.high == pytest.approx(20 + 10 * 2.92 / 3**0.5, rel=1e-3)
    assert found.low == pytest.approx(20 - 10 * 2.92 / 3**0.5, rel=1e-3)
    assert Interval.of_total([0.0, 10.0], 1).low == 0


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
