"""dataset.json: the immutable plan of a dataset, and the fingerprint that every resume compares."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from manifests import schema
from manifests.errors import MissingFile, UserError
from manifests.storage import Storage

FILE = "dataset.json"
VERSION = 2
"""Version of the plan. In version 1 the fingerprint covered the number of identities, so such datasets cannot grow."""


class PlanMismatch(UserError):
    """The folder holds a dataset made by another plan."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides a dataset's bytes, as JSON values."""

    source: dict[str, Any]
    """The record of the head source: name, version, settings, hash of the weights, licence."""
    rig: dict[str, Any]
    """The view rig: its name, directions, jitter and lens."""
    identities: int
    seed: int
    """Identity i is the head of seed + i."""
    resolution: int
    """Pixels of a side of the pictures."""
    identities_per_shard: int
    members: dict[str, str]
    """The file extension of each member, e.g. {"rgb": "rgb.jpg"}."""
    settings: dict[str, Any]
    """The settings of meshes, normals and images."""
    packed: dict[str, Any] | None = None
    """The origin of a packed dataset, and as "shards" the identities of each shard in ascending order."""
    version: int = VERSION

    @property
    def member_names(self) -> tuple[str, ...]:
        """The members of a sample, in the order in which they lie in the tar."""
        return schema.member_names(self.members)

    @property
    def shards(self) -> int:
        return -(-self.identities // self.identities_per_shard) if self.packed is None else len(self.packed["shards"])

    def identities_of(self, shard: int) -> Sequence[int]:
        if self.packed is not None:
            return self.packed["shards"][shard]
        first = shard * self.identities_per_shard
        return range(first, min(first + self.identities_per_shard, self.identities))

    @property
    def background(self) -> str:
        """The background of the pictures: white, unless the settings of the source have another."""
        return (self.source.get("settings") or {}).get("background", "white")

    def shard_of(self, identity: int) -> int:
        """The shard of an identity."""
        if self.packed is None:
            return identity // self.identities_per_shard
        return self._shard_by_identity[identity]

    @cached_property
    def _shard_by_identity(self) -> dict[int, int]:
        """The shard of each identity of a pack."""
        assert self.packed is not None
        return {identity: shard for shard, own in enumerate(self.packed["shards"]) for identity in own}

    def document(self) -> dict[str, Any]:
        """The plan as JSON values, without its version; `packed` is left out where it is None."""
        left_out = {"version"} | ({"packed"} if self.packed is None else set())
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the bytes of an identity, which their number does not."""
        document = self.document()
        if self.version > 1:
            del document["identities"]
        return hashlib.sha256(_canonical({"schema": self.version, **document}).encode()).hexdigest()


def write_plan(storage: Storage, plan: Plan) -> Plan:
    """Write dataset.json, or check that the existing one has the same plan, and return the plan in its version.

    Raises:
        PlanMismatch: the folder holds another dataset; the message names the differences.
    """
    if not storage.exists(FILE):
        if any(name.endswith(schema.DONE) for name in storage.names(schema.SHARDS)):
            raise UserError(
                f"{storage.url} holds shards but no {FILE}; restore it from a copy, or choose another folder"
            )
        replace_plan(storage, plan)
        return plan
    there = read_plan(storage)
    plan = replace(plan, version=there.version)
    if (there.fingerprint, there.identities) != (plan.fingerprint, plan.identities):
        raise PlanMismatch(
            f"{storage.url} holds another dataset: {differences(there, plan)}. Choose another folder to make this one."
        )
    return plan


def replace_plan(storage: Storage, plan: Plan) -> None:
    """Write dataset.json, replacing what is there."""
    document = {
        "format": "spinset",
        "schema": plan.version,
        "fingerprint": plan.fingerprint,
        "plan": plan.document(),
    }
    storage.write_json(FILE, document, sort_keys=True)


def differences(there: Plan, asked: Plan) -> str:
    """The fields in which two plans differ, with both values abbreviated."""
    found = json_differences(there.document(), asked.document())
    return "; ".join(f"{at} is {a}, asked for {b}" for at, a, b in found)


def read_plan(storage: Storage) -> Plan:
    """Read and check dataset.json; raises MissingFile or UserError."""
    if not storage.exists(FILE):
        raise MissingFile(f"{storage.url} is not a dataset: it has no {FILE}")
    try:
        document = json.loads(storage.read(FILE))
        version, fingerprint, fields = document["schema"], document["fingerprint"], document["plan"]
        # A later version may hold other fields.
        plan = Plan(**fields, version=version) if version in range(1, VERSION + 1) else None
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise UserError(f"{storage.url}/{FILE} is damaged ({problem}); restore it from a copy") from error
    if plan is None:
        raise UserError(f"{storage.url}/{FILE} has schema {version}; this spinset reads schemas up to {VERSION}")
    if plan.fingerprint != fingerprint:
        raise UserError(
            f"{storage.url}/{FILE} was edited: its plan no longer gives its fingerprint; restore it from a copy"
        )
    return plan


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def json_differences(a: Any, b: Any, at: str = "") -> list[tuple[str, str, str]]:
    """The dotted paths at which two values differ as JSON, with both values abbreviated."""
    if isinstance(a, dict) and isinstance(b, dict):
        paths = sorted(a.keys() | b.keys())
        return [found for k in paths for found in json_differences(a.get(k), b.get(k), f"{at}.{k}" if at else k)]
    return [] if _canonical(a) == _canonical(b) else [(at, _short(a), _short(b))]


def _short(value: Any) -> str:
    text = _canonical(value)
    return text if len(text) <= 60 else text[:57] + "..."
