"""What a policy is: a small JSON of rules on scores, checked when read; and the presets."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from manifests.errors import UserError
from manifests.scores import IDENTITY, VIEW

PRESETS = ("gen3d-face", "spinmeround", "diffportrait360", "early")

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_COLUMN = re.compile(r"\w+\.\w+")


@dataclass(frozen=True)
class Sector:
    """Where the views of a rule lie, in degrees; an azimuth range runs from its first number up, so [120, 240] is the back."""

    azimuth: tuple[float, float] = (-180.0, 180.0)
    elevation: tuple[float, float] = (-90.0, 90.0)

    def __str__(self) -> str:
        parts = [
            f"{name} {low:g} to {high:g}"
            for name, (low, high), everything in (
                ("azimuth", self.azimuth, (-180.0, 180.0)),
                ("elevation", self.elevation, (-90.0, 90.0)),
            )
            if (low, high) != everything
        ]
        return ", ".join(parts) or "all views"


@dataclass(frozen=True)
class Softmax:
    """The probability of the first of some columns, whose numbers are scaled: zero-shot classification by raw cosines."""

    columns: tuple[str, ...]
    scale: float = 100.0

    def __str__(self) -> str:
        return f"softmax({', '.join(self.columns)})"


@dataclass(frozen=True)
class Rule:
    """One criterion; exactly one of min/max (either or both), keep_top and keep_bottom says who passes."""

    name: str
    score: str | Softmax
    min: float | None = None
    max: float | None = None
    keep_top: float | None = None
    """The share of the survivors of the rules before with the highest scores; keep_bottom: the lowest."""
    keep_bottom: float | None = None
    where: Sector = field(default_factory=Sector)
    drop: str | None = None
    """What a failing view costs: the view, or its identity. Identity scores always judge the identity."""
    max_failing: int | None = None
    """With drop = identity: the identity goes when more of its views fail (0 unless told)."""
    max_failing_share: float | None = None
    """The same as a share of the views judged."""
    min_passing: int | None = None
    """The identity goes when fewer of its views pass."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.score,) if isinstance(self.score, str) else self.score.columns

    @property
    def is_quantile(self) -> bool:
        return self.keep_top is not None or self.keep_bottom is not None

    @property
    def share(self) -> float:
        """What a quantile keeps."""
        share = self.keep_top if self.keep_top is not None else self.keep_bottom
        assert share is not None, f"rule {self.name} is no quantile"
        return share

    def __str__(self) -> str:
        """Why something fails this rule."""
        if self.is_quantile:
            end = "highest" if self.keep_top is not None else "lowest"
            why = f"{self.score} not among the {end} {100 * self.share:g} %"
        else:
            low = [f"below {self.min:g}"] if self.min is not None else []
            high = [f"above {self.max:g}"] if self.max is not None else []
            why = f"{self.score} {' or '.join(low + high)}"
        return f"{self.name}: {why}" + (f" ({self.where})" if self.where != Sector() else "")


@dataclass(frozen=True)
class Policy:
    """Rules in order. Thresholds judge everything alike; quantiles judge what survived the rules before them."""

    name: str
    rules: tuple[Rule, ...]
    about: str = ""
    whole_identities: bool = False
    """An identity that loses a view goes altogether, as rings with fixed places need."""
    requires: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Tables that must be there, and what their lineage must say, e.g. {"clip_janus": {"weights_sha256": "..."}}."""

    @property
    def tables(self) -> dict[str, list[str]]:
        """The columns that the rules read, by table."""
        found: dict[str, list[str]] = {table: [] for table in self.requires}
        for table, name in (column.split(".") for rule in self.rules for column in rule.columns):
            if name not in found.setdefault(table, []):
                found[table].append(name)
        return found


def policy_file(name: str) -> Path:
    """The file of a preset, or the path of a JSON file; raises UserError if it is neither."""
    path = Path(__file__).parent / "policies" / f"{name}.json" if name in PRESETS else Path(name)
    if not path.is_file():
        raise UserError(f"there is no policy {name!r}: it is neither a preset ({', '.join(PRESETS)}) nor a file")
    return path


def read_policy(name: str) -> tuple[Policy, dict[str, Any]]:
    """A preset or a JSON file, checked, and the document as it stands there.

    Raises:
        ValueError: neither of the two, or a document that is no policy; one line says where and why.
    """
    path = policy_file(name)
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object_of)
    except json.JSONDecodeError as error:
        raise UserError(f"policy {name} is not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"policy {name} is not UTF-8 text: {error}") from None
    except ValueError as error:
        raise UserError(f"policy {name}: {error}") from None
    try:
        return parse_policy(document), document
    except ValueError as error:
        raise UserError(f"policy {name}: {error}") from None


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises UserError for a key that stands twice, of which `json` would silently keep the last."""
    keys = [key for key, _ in pairs]
    if double := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"the key {double!r} stands twice in one object")
    return dict(pairs)


def parse_policy(document: Any) -> Policy:
    """A policy of its JSON document; raises ValueError with the rule and the field at fault."""
    known = _object(document, "the policy", Policy)
    name = _text(known, "name", "the policy")
    if not _NAME.fullmatch(name):
        raise UserError(f"name is {name!r}; it may hold a-z, 0-9, '-', '_' and '.'")
    rules = known.get("rules")
    if not isinstance(rules, list) or not 1 <= len(rules) <= 60:
        raise UserError("rules must be a list of 1 to 60 rules")
    parsed = tuple(_rule(rule, i) for i, rule in enumerate(rules, 1))
    names = [rule.name for rule in parsed]
    if double := next((n for n in names if names.count(n) > 1), None):
        raise UserError(f"two rules are called {double!r}")
    requires, whole, about = known.get("requires", {}), known.get("whole_identities", False), known.get("about", "")
    if not isinstance(requires, dict) or not all(isinstance(pins, dict) for pins in requires.values()):
        raise UserError('requires must map tables to what their lineage must say, e.g. {"arcface": {"version": 1}}')
    if not isinstance(whole, bool) or not isinstance(about, str):
        raise UserError("whole_identities must be true or false, about a text")
    return Policy(name, parsed, about, whole, requires)


def _rule(document: Any, number: int) -> Rule:
    known = _object(document, f"rule {number}", Rule)
    name = _text(known, "name", f"rule {number}")
    at = f"rule {number} ({name})"
    rule = Rule(
        name,
        _score(known.get("score"), at),
        **{k: _number(known, k, at) for k in ("min", "max")},
        **{k: _share(known, k, at) for k in ("keep_top", "keep_bottom", "max_failing_share")},
        **{k: _count(known, k, at) for k in ("max_failing", "min_passing")},
        where=_sector(known.get("where", {}), at),
        drop=known.get("drop"),
    )
    _check_sense(rule, at)
    return rule


def _check_sense(rule: Rule, at: str) -> None:
    ways = (rule.min is not None or rule.max is not None, rule.keep_top is not None, rule.keep_bottom is not None)
    if sum(ways) != 1:
        raise UserError(f"{at} must have min and/or max, or keep_top, or keep_bottom")
    if rule.min is not None and rule.max is not None and rule.min > rule.max:
        raise UserError(f"{at} has min {rule.min:g} above max {rule.max:g}, so nothing passes")
    if rule.drop not in (None, VIEW, IDENTITY):
        raise UserError(f"{at} has drop {rule.drop!r}; it must be view or identity")
    counts = [k for k in ("max_failing", "max_failing_share", "min_passing") if getattr(rule, k) is not None]
    if len(counts) > 1:
        raise UserError(f"{at} has {' and '.join(counts)}; one of them is enough")
    if counts and rule.drop != IDENTITY:
        raise UserError(f"{at} has {counts[0]}, which needs drop = identity")


def _object(document: Any, at: str, kind: type) -> Mapping[str, Any]:
    known = [f.name for f in fields(kind)]
    if not isinstance(document, dict):
        raise UserError(f"{at} must be an object with {', '.join(known)}")
    if unknown := [k for k in document if k not in known]:
        raise UserError(f"{at} has an unknown field {unknown[0]!r}; there are {', '.join(known)}")
    return document


def _text(known: Mapping[str, Any], name: str, at: str) -> str:
    if not isinstance(known.get(name), str) or not known[name]:
        raise UserError(f"{at} needs a {name}")
    return known[name]


def _score(value: Any, at: str) -> str | Softmax:
    if isinstance(value, dict):
        if unknown := [k for k in value if k not in ("softmax", "scale")]:
            raise UserError(f"{at}: score has an unknown field {unknown[0]!r}; there are softmax and scale")
        columns, scale = value.get("softmax"), value.get("scale", 100.0)
        if not isinstance(columns, list) or len(columns) < 2:
            raise UserError(f"{at}: softmax needs two columns or more")
        if not _is_number(scale) or scale <= 0:
            raise UserError(f"{at}: scale is {scale!r}; it must be a positive number")
        return Softmax(tuple(_column(c, at) for c in columns), float(scale))
    return _column(value, at)


def _column(value: Any, at: str) -> str:
    if not isinstance(value, str) or not _COLUMN.fullmatch(value):
        raise UserError(f"{at}: {value!r} is no score; scores are written table.column, as arcface.mean_cosine")
    return value


def _sector(document: Any, at: str) -> Sector:
    known = _object(document, f"{at}: where", Sector)
    ranges = {}
    for name, value in known.items():
        if not isinstance(value, list) or len(value) != 2 or not all(map(_is_number, value)) or value[0] > value[1]:
            raise UserError(f"{at}: {name} is {value!r}; it must be [from, to] in degrees, from <= to")
        ranges[name] = (float(value[0]), float(value[1]))
    return Sector(**ranges)


def _number(known: Mapping[str, Any], name: str, at: str) -> float | None:
    value = known.get(name)
    if value is not None and not _is_number(value):
        raise UserError(f"{at}: {name} is {value!r}; it must be a number")
    return None if value is None else float(value)


def _share(known: Mapping[str, Any], name: str, at: str) -> float | None:
    value = _number(known, name, at)
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"{at}: {name} is {value:g}; it must be between 0 and 1")
    return value


def _count(known: Mapping[str, Any], name: str, at: str) -> int | None:
    value = known.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise UserError(f"{at}: {name} is {value!r}; it must be a whole number from 0")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
