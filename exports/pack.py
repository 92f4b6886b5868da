"""`spinset pack`: the job over the shards of a pack."""

from exports.config import PackConfig
from jobs.pool import Event
from jobs.progress import JobProgress
from manifests.dataset import Dataset
from manifests.keep import Keep, choose
from manifests.pack import make_pack_plan, open_pack, write_pack
from manifests.storage import Storage


def pack(config: PackConfig) -> Dataset:
    """Make what is missing of a pack, and return the whole.

    Raises:
        ValueError: the dataset is not complete, there is no such selection, or DEST holds something else.
    """
    source = Dataset(config.out)
    keep = choose(source, config.selection, config.identities)
    made = open_pack(Storage(config.dest), make_pack_plan(source, keep, config.shard_mb * 1_000_000))
    fill(source, keep, made)
    return made


def fill(source: Dataset, keep: Keep, made: Dataset) -> None:
    """Write the shards that a pack lacks, and show how far it is."""
    already = sum(len(made.plan.identities_of(shard)) for shard in made.committed())
    with JobProgress("pack", made.plan.identities, already) as progress:
        for shard, identity in write_pack(source, keep, made):
            progress.update(Event(shard, identity, "copy", 1, 1))
