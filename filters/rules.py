"""Policies: small JSON files of rules on scores, checked when they are read; and the presets."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    TypeAdapter,
    ValidationError,
    with_config,
)

from filters.policies import policy_file
from manifests.errors import UserError

STRICT = ConfigDict(extra="forbid", strict=True)
"""Unknown fields are errors, and so are values of another type, such as a number written as a text."""


def _checked(test: Callable[[Any], bool], rule: str) -> AfterValidator:
    """A check of one value; `rule` completes the sentence that begins with the value."""

    def check(value: Any) -> Any:
        if not test(value):
            raise ValueError(rule)
        return value

    return AfterValidator(check)


def _is_column(name: str) -> bool:
    table, _, column = name.partition(".")
    return table.isidentifier() and column.isidentifier()


ColumnName = Annotated[str, _checked(_is_column, "a score is written table.column, as arcface.mean_cosine")]
Degrees = Annotated[
    tuple[FiniteFloat, ...],
    _checked(lambda ends: len(ends) == 2 and ends[0] <= ends[1], "a range is [from, to] in degrees with from <= to"),
]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


@with_config(STRICT)
@dataclass(frozen=True)
class Sector:
    """Directions of views, in degrees; an azimuth range goes upwards from its first number, so [120, 240] is the back."""

    azimuth: Degrees = (-180.0, 180.0)
    elevation: Degrees = (-90.0, 90.0)

    def __str__(self) -> str:
        parts = [
            f"{one.name} {low:g} to {high:g}"
            for one, (low, high) in ((one, getattr(self, one.name)) for one in fields(self))
            if (low, high) != one.default
        ]
        return ", ".join(parts) or "all views"


@with_config(STRICT)
@dataclass(frozen=True)
class Softmax:
    """The probability of the first of some columns after a softmax: zero-shot classification by cosines."""

    softmax: Annotated[
        tuple[ColumnName, ...], _checked(lambda names: len(names) > 1, "a softmax has two columns or more")
    ]
    """Columns of scores, two or more."""
    scale: Annotated[FiniteFloat, Field(gt=0)] = 100.0
    """Factor of the scores before the softmax; CLIP's logit scale is 100."""

    def __str__(self) -> str:
        return f"softmax({', '.join(self.softmax)})"


@with_config(STRICT)
@dataclass(frozen=True)
class Rule:
    """One criterion. What passes is given by min and/or max, or by keep_top, or by keep_bottom."""

    name: Annotated[str, Field(min_length=1)]
    score: Annotated[
        Annotated[ColumnName, Tag("column")] | Annotated[Softmax, Tag("classes")],
        Discriminator(lambda value: "classes" if isinstance(value, dict) else "column"),
    ]
    min: FiniteFloat | None = None
    max: FiniteFloat | None = None
    keep_top: Share | None = None
    """Share with the highest scores, of what the rules before let pass."""
    keep_bottom: Share | None = None
    """Share with the lowest scores, of what the rules before let pass."""
    where: Sector = field(default_factory=Sector)
    drop: Literal["view", "identity"] | None = None
    """The loss for a failing view: the view, which is the default, or its identity. Scores of identities drop the identity."""
    max_failing: Count | None = None
    """With drop = identity, the identity is dropped when more of its views fail; the default is 0."""
    max_failing_share: Share | None = None
    """With drop = identity, the same limit as a share of the identity's views that the rule judges."""
    min_passing: Count | None = None
    """With drop = identity, the identity is dropped when fewer of its views pass."""

    def __post_init__(self) -> None:
        ways = (self.min is not None or self.max is not None, self.keep_top is not None, self.keep_bottom is not None)
        if sum(ways) != 1:
            raise UserError("a rule must have min and/or max, or keep_top, or keep_bottom")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise UserError(f"min {self.min:g} is above max {self.max:g}, so nothing passes")
        counts = [k for k in ("max_failing", "max_failing_share", "min_passing") if getattr(self, k) is not None]
        if len(counts) > 1:
            raise UserError(f"a rule has at most one of {' and '.join(counts)}")
        if counts and self.drop != "identity":
            raise UserError(f"{counts[0]} needs drop = identity")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.score,) if isinstance(self.score, str) else self.score.softmax

    @property
    def is_quantile(self) -> bool:
        return self.keep_top is not None or self.keep_bottom is not None

    @property
    def share(self) -> float:
        """The share that a quantile keeps."""
        share = self.keep_top if self.keep_top is not None else self.keep_bottom
        assert share is not None, f"rule {self.name} is no quantile"
        return share

    def __str__(self) -> str:
        """The reason of a row that fails this rule."""
        if self.is_quantile:
            end = "highest" if self.keep_top is not None else "lowest"
            why = f"{self.score} not among the {end} {100 * self.share:g} %"
        else:
            low = [f"below {self.min:g}"] if self.min is not None else []
            high = [f"above {self.max:g}"] if self.max is not None else []
            why = f"{self.score} {' or '.join(low + high)}"
        return f"{self.name}: {why}" + (f" ({self.where})" if self.where != Sector() else "")


@with_config(STRICT)
@dataclass(frozen=True)
class Policy:
    """Rules in order. Thresholds judge everything alike; quantiles judge what the rules before them let pass."""

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_.-]*$")]
    rules: Annotated[tuple[Rule, ...], _checked(lambda rules: 0 < len(rules) <= 60, "a policy has 1 to 60 rules")]
    """At most 60, because a verdict has one bit of 64 per rule."""
    about: str = ""
    whole_identities: bool = False
    """Whether an identity that loses any view is dropped, as rings with a fixed number of views need."""
    requires: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Fields that the lineage of a table must have, such as {"clip_janus": {"weights_sha256": "..."}}."""

    def __post_init__(self) -> None:
        names = [rule.name for rule in self.rules]
        if double := next((n for n in names if names.count(n) > 1), None):
            raise UserError(f"two rules are called {double!r}")

    @property
    def tables(self) -> dict[str, list[str]]:
        """The columns that the rules read, by table."""
        found: dict[str, list[str]] = {table: [] for table in self.requires}
        for table, name in (column.split(".") for rule in self.rules for column in rule.columns):
            if name not in found.setdefault(table, []):
                found[table].append(name)
        return found


_POLICY = TypeAdapter(Policy)


def read_policy(name: str) -> tuple[Policy, dict[str, Any]]:
    """Read a preset or a JSON file; returns the policy and its document.

    Raises:
        UserError: neither of the two, or a document that is no policy; one line with the field and what it must be.
    """
    path = policy_file(name)
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object_of)
        return parse_policy(document), document
    except json.JSONDecodeError as error:
        raise UserError(f"policy {name} is not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"policy {name} is not UTF-8 text: {error}") from None
    except UserError as error:
        raise UserError(f"policy {name}: {error}") from None


def parse_policy(document: Any) -> Policy:
    """A policy from its JSON document; raises UserError in one line with the field at fault."""
    try:
        return _POLICY.validate_json(json.dumps(document))
    except ValidationError as error:
        raise UserError(_one_line(document, error)) from None


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises UserError for a key that occurs twice, of which `json` would silently keep the last."""
    keys = [key for key, _ in pairs]
    if double := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"the key {double!r} occurs twice in one object")
    return dict(pairs)


def _one_line(document: Any, error: ValidationError) -> str:
    """The first fault of a document: the path of the field, its value, and what is expected."""
    faults = error.errors()
    fault = next((one for one in faults if one["type"] == "unexpected_keyword_argument"), faults[0])
    path, where = [str(part) for part in fault["loc"] if part not in ("column", "classes")], "the policy"
    if path[:1] == ["rules"] and len(path) > 1:
        index, path = int(path[1]), path[2:]
        rule = document["rules"][index]
        where = (
            f"rule {index + 1} ({rule['name']})" if isinstance(rule, dict) and rule.get("name") else f"rule {index + 1}"
        )
    what = ".".join(path)
    if fault["type"] == "unexpected_keyword_argument":
        kind = {"where": Sector, "score": Softmax}.get(path[0], Policy if where == "the policy" else Rule)
        return f"{where} has an unknown field {what!r}; there are {', '.join(f.name for f in fields(kind))}"
    if fault["type"] == "missing":
        return f"{where} has no {what}"
    expected = fault["msg"].removeprefix("Value error, ")
    expected = expected[0].lower() + expected[1:]
    return f"{where}: {what} is {json.dumps(fault['input'])[:80]}; {expected}" if what else f"{where}: {expected}"
