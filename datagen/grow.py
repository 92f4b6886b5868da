"""Lets a dataset hold more identities than it was begun with."""

from jobs.ledger import Ledger
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.plan import FILE, Plan, read_plan, replace_plan
from manifests.shards import reopen
from manifests.storage import Storage


def grow(storage: Storage, plan: Plan) -> None:
    """Let the dataset of a storage hold as many identities as a plan that is otherwise the same; it never shrinks.

    If the last shard is not full, it is opened again. Its bytes are then those of a dataset that was asked for at once.

    Raises:
        UserError: other commands generate this dataset, with its present number of identities.
        DamagedData: the last shard is damaged; nothing was changed.
    """
    if not storage.exists(FILE):
        return
    dataset = Dataset(storage)
    there = dataset.plan
    if there.fingerprint != plan.fingerprint or there.identities >= plan.identities:
        return
    if Ledger(storage, "generate", lambda unit: False).others():
        if read_plan(storage).identities == plan.identities:  # another part has just done this
            return
        raise UserError(
            f"{storage.url} has {there.identities} identities and other commands are at work on it; give "
            f"--identities {plan.identities} when they have ended"
        )
    last = there.shards - 1
    if len(there.identities_of(last)) < len(plan.identities_of(last)) and last in dataset.committed():
        reopen(storage, there, last)
    replace_plan(storage, plan)
