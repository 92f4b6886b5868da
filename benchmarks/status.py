"""The time of `spinset status` on 100,000 identities in shards of 16, of which 1 % failed: python benchmarks/status.py.

The commit records are made up and hold what real ones do; there are no other files, because status reads none.
"""

import json
import resource
import tempfile
import time
from pathlib import Path

from manifests import schema
from manifests.dataset import Dataset
from manifests.plan import Plan, write_plan
from manifests.shards import SUFFIXES, record_file
from manifests.status import Failure, summarise
from manifests.storage import Storage

IDENTITIES, PER_SHARD, HOSTS, REPEATS = 100_000, 16, 40, 3


def record(plan: Plan, shard: int) -> dict[str, object]:
    """The commit record of a shard of 125 views per identity."""
    own = plan.identities_of(shard)
    failed = [identity for identity in own if identity % 100 == 0]
    run = {
        "host": f"host-{shard % HOSTS}",
        "finished": f"2026-12-01T{shard // 300:02d}:{shard % 60:02d}:00Z",
        "seconds": 100.0,
        "identity_seconds": {str(identity): 6.0 + identity % 7 for identity in own},
        "stage_seconds": {"head": 1.0, "views": 60.0, "mesh": 10.0, "encode": 20.0},
        "failures": [vars(Failure(i, i, "mesh", "ValueError: no surface", None, "0" * 64, "host", 2)) for i in failed],
        "tracebacks": {str(identity): "Traceback (most recent call last)\n" * 60 for identity in failed},
    }
    return {
        "fingerprint": plan.fingerprint,
        "files": {suffix: {"size": 10**9, "sha256": "0" * 64} for suffix in SUFFIXES},
        "views": 125 * (len(own) - len(failed)),
        "outcomes": {schema.KEPT: len(own) - len(failed), schema.FILTERED: 0, schema.FAILED: len(failed)},
        "run": run,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        members = {"rgb": "rgb.jpg", "alpha": "alpha.png", "normal": "normal.png", "json": "json"}
        plan = write_plan(Storage(folder), Plan({"name": "none"}, {}, IDENTITIES, 0, 512, PER_SHARD, members, {}))
        Path(folder, schema.SHARDS).mkdir()
        for shard in range(plan.shards - 5):
            Path(folder, record_file(shard)).write_text(json.dumps(record(plan, shard), indent=2))
        for _ in range(REPEATS):
            begun, busy = time.perf_counter(), time.process_time()
            status = summarise(Dataset(folder))
            seconds, busy = time.perf_counter() - begun, time.process_time() - busy
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            done = status.kept + status.failed
            print(
                f"{done:,} identities, {status.failed:,} failed: {seconds:.2f} s, processor {busy:.2f} s, {peak:.0f} MB"
            )


if __name__ == "__main__":
    main()
