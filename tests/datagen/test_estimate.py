"""What `spinset plan` foretells, against what is made."""

import heapq
import math
from dataclasses import replace

import numpy as np
import pytest
from egg import EggConfig, egg_job

from datagen.estimate import estimate, total, workers_of
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


def test_an_interval_is_that_of_a_lognormal_mean():
    """By hand, of 1, e and e squared: logs of mean 1 and variance 1; Student's t of 2 degrees at 97.5 % is 4.303."""
    found = total([1.0, math.e, math.e**2], 10)
    reach = 4.30265 * math.sqrt(1 / 3 + 1 / 4)
    assert found.value == pytest.approx(10 * (1 + math.e + math.e**2) / 3)
    assert found.low == pytest.approx(10 * math.exp(1.5 - reach), rel=1e-4)
    assert found.high == pytest.approx(10 * math.exp(1.5 + reach), rel=1e-4)
    same = total([2.0, 2.0], 3)
    assert (same.value, same.low, same.high) == (6.0, pytest.approx(6.0), pytest.approx(6.0))
    assert total([2.0], 3).high == math.inf


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.6, 1.0])
def test_intervals_hold_the_true_time_of_simulated_runs(tmp_path, monkeypatch, sigma):
    """400 runs of 400 heads in 50 shards on 4 workers, whose seconds are log-normal; each is foretold from 5 probes.

    At least 18 of 20 hold, by the median over 20 such tries.
    """
    monkeypatch.setattr("datagen.estimate.usable_cores", lambda: 4)
    draw = np.random.default_rng(0)
    config = egg_job(str(tmp_path), PoolConfig(workers=4), identities=400, identities_per_shard=8)
    first = estimate(config, 2)
    held = []
    for _ in range(400):
        true = _wall(draw.lognormal(0, sigma, 400), per_shard=8, workers=4)
        probed = total(draw.lognormal(0, sigma, 5).tolist(), 400)
        elapsed = replace(first, seconds=probed).elapsed
        held.append(elapsed.low <= true <= elapsed.high)
    assert np.median(np.reshape(held, (20, 20)).sum(1)) >= 18 and np.mean(held) >= 0.9


def _wall(seconds, per_shard: int, workers: int) -> float:
    """The time of workers that each take the next shard when they are free."""
    free = [0.0] * workers
    for shard in seconds.reshape(-1, per_shard).sum(1):
        heapq.heapreplace(free, free[0] + shard)
    return max(free)


def test_gpus_are_counted_and_paid_for(tmp_path, monkeypatch):
    """Two workers on half a GPU each occupy one GPU until the last of them ends."""
    monkeypatch.setattr("datagen.estimate.usable_cores", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    config = egg_job(str(tmp_path), PoolConfig(gpus_per_worker=0.5), save_meshes=True)
    found = estimate(config, price=2.0)
    assert (found.workers, found.files) == (2, 4 * 4 + 1 + 7)
    assert found.gpu_hours.value == pytest.approx(found.elapsed.value / 3600)
    cost = f"{2 * found.gpu_hours.value:.4g}"
    assert f"cost {cost} (" in str(found) and "at 2 per GPU-hour" in str(found) and "in 24 files" in str(found)
    assert found.bytes.value > estimate(replace(config, save_meshes=False)).bytes.value
    with pytest.raises(ValueError, match="--price is that of a GPU-hour, and workers have no GPU"):
        estimate(egg_job(str(tmp_path), INLINE), price=2.0)


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
    with pytest.raises(ValueError, match="--probe is 1; two heads or more tell how much heads differ"):
        estimate(config, 1)
