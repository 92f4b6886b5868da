"""Lets a dataset hold more identities than it was begun with."""

import time

from jobs.ledger import Ledger
from manifests.dataset import Dataset
from manifests.errors import UserError
from manifests.plan import FILE, Plan, read_plan, replace_plan
from manifests.shards import reopen
from manifests.storage import Storage

LEASE = -1
"""The unit whose lease a driver takes while it lets the dataset grow."""


def grows(storage: Storage, plan: Plan) -> bool:
    """Whether a plan is that of the dataset in a storage but for more identities."""
    if not storage.exists(FILE):
        return False
    there = read_plan(storage)
    return there.fingerprint == plan.fingerprint and there.identities < plan.identities


def grow(storage: Storage, plan: Plan, ledger: Ledger) -> None:
    """Let the dataset hold as many identities as the plan, if this is more, and see that no driver works at another size.

    If the last shard is not full, it is opened again. Its bytes are then those of a dataset that was asked for at once. The
    driver must have signed on with the number of its identities as its note: of two drivers that differ at least one sees
    the other, because both sign on before they look.

    Raises:
        UserError: other commands are at work with another number of identities, or make heads again.
        DamagedData: the last shard is damaged; nothing was changed.
    """
    while True:
        differing = [name for name in ledger.others() if ledger.note_of(name) != ledger.note]
        if differing and any(note != ledger.note for note in ledger.certain_others().values()):
            raise UserError(
                f"other commands are at work on {storage.url}, not with {ledger.note} identities; give this one when they have "
                "ended"
            )
        if not grows(storage, plan):
            return
        if ledger.claim(LEASE):
            if grows(storage, plan):
                _grow(storage, plan)
            ledger.release(LEASE)
        else:
            time.sleep(0.5)  # Another part of this job does it.


def _grow(storage: Storage, plan: Plan) -> None:
    dataset = Dataset(storage)
    there, last = dataset.plan, dataset.plan.shards - 1
    if len(there.identities_of(last)) < len(plan.identities_of(last)) and last in dataset.committed():
        reopen(storage, there, last)
    replace_plan(storage, plan)
