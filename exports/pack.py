"""`spinset pack`: the job over the shards of a pack."""

from dataclasses import dataclass

from tyro.conf import Positional

from jobs.pool import Event
from jobs.progress import JobProgress
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.keep import Keep, check_identities, choose
from manifests.pack import make_pack_plan, open_pack, write_pack
from manifests.storage import Storage


@dataclass(frozen=True)
class PackConfig:
    """Copy what a selection keeps to a dataset of its own, with shards of another size; the same command resumes it."""

    out: Positional[str]
    """Folder or address of the dataset."""
    dest: Positional[str]
    """Folder or address of the pack: empty, or the same pack unfinished."""
    selection: str = ""
    """What to keep; everything that was made unless told."""
    identities: str = ""
    """A count, of the first that are kept, or a range of numbers such as 200:300; all unless told."""
    shard_mb: int = 500
    """Size of a shard in MB, at most (one identity always fits)."""

    def __post_init__(self) -> None:
        check_identities(self.identities)
        if self.shard_mb < 1:
            raise UserError(f"--shard-mb is {self.shard_mb}; it must be at least 1")


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
