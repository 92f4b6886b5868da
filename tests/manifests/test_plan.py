"""The plan guards a dataset: same plan resumes, another is refused, a damaged one is named."""

import json
from dataclasses import replace

import pytest
from small import small_plan, write_shard

from manifests.draws import generator
from manifests.plan import FILE, PlanMismatch, read_plan, replace_plan, write_plan
from manifests.storage import Storage


@pytest.fixture
def storage(tmp_path) -> Storage:
    storage = Storage(tmp_path)
    write_plan(storage, small_plan())
    return storage


def test_round_trip(storage):
    assert read_plan(storage) == small_plan()
    before = storage.read(FILE)
    write_plan(storage, small_plan())
    assert storage.read(FILE) == before


def test_another_plan_is_refused_and_the_difference_named(storage):
    before = storage.read(FILE)
    other = small_plan(resolution=32, source={"name": "noise", "version": 2})
    with pytest.raises(PlanMismatch, match=r"resolution is 16, asked for 32; source\.version is 1, asked for 2"):
        write_plan(storage, other)
    assert storage.read(FILE) == before


def test_shards_without_a_plan_are_not_adopted(storage):
    write_shard(storage, small_plan(), 0)
    storage.remove(FILE)
    with pytest.raises(ValueError, match=r"holds shards but no dataset\.json"):
        write_plan(storage, small_plan(seed=5))
    assert not storage.exists(FILE)


def test_no_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a dataset: it has no dataset\.json"):
        read_plan(Storage(tmp_path / "nothing"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1, "fingerprint": "x", "plan": {"identities": 3}}'])
def test_damaged(storage, text):
    storage.write(FILE, text.encode())
    with pytest.raises(ValueError, match="is damaged"):
        read_plan(storage)


def test_edited(storage):
    document = json.loads(storage.read(FILE))
    document["plan"]["seed"] = 7
    storage.write(FILE, json.dumps(document).encode())
    with pytest.raises(ValueError, match="was edited"):
        read_plan(storage)


def test_newer_schema(storage):
    document = json.loads(storage.read(FILE))
    document["schema"] = 99
    storage.write(FILE, json.dumps(document).encode())
    with pytest.raises(ValueError, match="has schema 99; this spinset reads schemas up to 2"):
        read_plan(storage)


def test_the_first_schema_is_read_and_its_size_is_final(storage):
    """Its fingerprint, which all samples hold, covers the number of identities."""
    old = replace(small_plan(), version=1)
    replace_plan(storage, old)
    assert read_plan(storage) == old and old.fingerprint != small_plan().fingerprint
    assert write_plan(storage, small_plan()) == old
    with pytest.raises(PlanMismatch, match="identities is 5, asked for 8"):
        write_plan(storage, small_plan(8))


def test_every_identity_is_in_one_shard():
    plan = small_plan(identities=11, per_shard=4)
    assert [list(plan.identities_of(s)) for s in range(plan.shards)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_draws_depend_on_their_key_alone():
    first = generator(3, "rig", 5).random(4)
    generator(3, "rig", 6).random(100)
    assert (generator(3, "rig", 5).random(4) == first).all()
    for other in (generator(4, "rig", 5), generator(3, "defect", 5), generator(3, "rig", 6), generator(3, "rig")):
        assert (other.random(4) != first).all()
