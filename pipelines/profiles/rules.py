"""What a token profile's rules can say: one YAML of them is a profile, and a run's configuration overrides single keys.

The built-in ones stand beside this file; a paper's own list is `…-paper`. docs/profiles.md explains every rule.
"""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from extractors.yaml_files import read_yaml
from pipelines.profiles.plans import PlanConfig, PlanName
from warehouse.errors import TimeloomError

BUILT_IN = ("mehrt", "ethos", "mehrt-paper", "ethos-paper")
# Keys that say how timelines are packed, which subjects are train, or whose vectors tokens carry: no rule of a token.
NOT_TOKENS = frozenset({"context", "plans", "scheme", "vocabulary_version", "encoders"})
_FOLDER = Path(__file__).parent
_SPANS = re.compile(r"[1-9]\d?(\+[1-9]\d?)*(\+\*)?")


class Piece(BaseModel):
    """One token of a code: so many characters of its body, below a namespace of their own.

    Attributes:
        length: characters; the last piece of a code takes all that is left.
        namespace: what stands before the piece in its token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: int = Field(ge=1)
    namespace: str = Field(min_length=1)


class NamespaceRule(BaseModel):
    """How codes of a namespace become tokens; what is not said leaves the code one token.

    Attributes:
        pieces: `3+3+*` cuts characters 1–3, 4–6 and the rest; the last number and `*` mean all that is left. The first
            piece keeps the code's namespace, later ones get one that names their characters (`ICD10CM/4-6`). Pieces of
            one character each are all named by their place. A list names lengths and namespaces itself.
        parents: namespaces of metadata/codes.parquet's `parent_codes` to go through, the first that has any. The
            parents' own rules say how they become tokens. A code without such a parent stays itself.
        several: of several parents, `each` becomes a group of tokens; `common` takes what their codes begin with
            alike, of at least three characters; `keep` leaves the code itself.
        values: the number of an event is told by its quantile, as the profile's `values` says.
        only_numeric: an event without a number is left out.
        top: only so many codes, those with the most events in train when the vocabulary is fitted; they stay.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pieces: str | tuple[Piece, ...] | None = None
    parents: tuple[str, ...] = ()
    several: Literal["each", "common", "keep"] = "each"
    values: bool = False
    only_numeric: bool = False
    top: int | None = Field(default=None, ge=1)

    @field_validator("pieces")
    @classmethod
    def _known(cls, pieces: Any) -> Any:
        if isinstance(pieces, str) and not _SPANS.fullmatch(pieces):
            raise ValueError(f"{pieces} names no pieces: write lengths such as 3+3+*")
        if pieces == ():
            raise ValueError("a code needs at least one piece")
        return pieces

    def pieces_of(self, namespace: str) -> tuple[Piece, ...]:
        """The pieces of codes of a namespace; none where a code is one token."""
        if not isinstance(self.pieces, str):
            return self.pieces or ()
        lengths = [0 if length == "*" else int(length) for length in self.pieces.split("+")]
        single = all(length == 1 for length in lengths)
        found, start = [], 1
        for number, length in enumerate(lengths):
            place = str(start) if number == len(lengths) - 1 or length == 1 else f"{start}-{start + length - 1}"
            named = f"{namespace}/{place}" if number or single else namespace
            found.append(Piece(length=length or 1, namespace=named))
            start += length
        return tuple(found)


class ProfileConfig(BaseModel):
    """Rules of a token profile.

    Attributes:
        rules: the built-in profile or YAML file that the other keys override; the profile's own name if built in.
        context: tokens a pack.
        plans: further packings of the same timelines, by name.
        scheme: the split scheme whose train subjects the vocabulary is fitted on; where not given, the first.
        encoders: by modality, the encoder whose vectors its tokens carry; where a modality has one, that.
        vocabulary_version: raising it fits vocabulary and quantiles anew, with new ids.
        order: tokens stand by when they could be known, or by `time`, the papers' literal reading.
        namespaces: what codes begin with, up to a slash, of what becomes tokens; null keeps every code.
        left_out: of these, what makes no token on purpose: the gate does not ask for it.
        codes: rules by what a code begins with, up to a slash; the longest beginning decides.
        values: `codes_only` leaves numbers out, `pair` puts a quantile's token behind the code's, `fused` makes one
            token of both.
        quantiles: bins a code and unit.
        min_values: numbers in train below which a code and unit gets no bins yet.
        intervals: tokens of the time between events: none, or those of ETHOS, 13 (2024) or 19 (2025).
        static: demographics stand at the start without a time, at their times, or nowhere.
        demographics: namespaces of demographic facts.
        demographic_value: of several values of an attribute at the start, the `first`, or the last that was known
            `at_start`, the moment of the first event.
        unknown_demographics: attributes (`DEMO/SEX`) that stand at the start as `…/UNKNOWN` where no value is.
        age: age at the first event, 90 and more pooled: `bands` of ten years, `digits` (two tokens, as ETHOS), none.
        image_position: images stand after or before (`first`) everything else of their moment.
        timeline_end: a token that ends each timeline.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: str | None = None
    context: int = Field(default=2048, ge=8, le=1 << 20)
    plans: dict[PlanName, PlanConfig] = Field(default_factory=dict)
    scheme: str | None = None
    encoders: dict[str, str] = Field(default_factory=dict)
    vocabulary_version: int = Field(default=1, ge=1)
    order: Literal["available_time", "time"] = "available_time"
    namespaces: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()
    codes: dict[str, NamespaceRule] = Field(default_factory=dict)
    values: Literal["codes_only", "pair", "fused"] = "codes_only"
    quantiles: int = Field(default=10, ge=2, le=100)
    min_values: int = Field(default=11, ge=1)
    intervals: Literal["none", "ethos13", "ethos19"] = "none"
    static: Literal["prefix", "timed", "none"] = "prefix"
    demographics: tuple[str, ...] = ("DEMO",)
    demographic_value: Literal["first", "at_start"] = "first"
    unknown_demographics: tuple[str, ...] = ()
    age: Literal["bands", "digits", "none"] = "bands"
    image_position: Literal["after", "first"] = "after"
    timeline_end: bool = False

    @model_validator(mode="after")
    def _one_meaning(self) -> "ProfileConfig":
        named: dict[str, str] = {}
        for key, rule in self.codes.items():
            if rule.pieces is not None and (rule.values or rule.top is not None):
                raise ValueError(f"codes.{key}: a code in pieces has neither values nor top")
            for number, piece in enumerate(rule.pieces_of(key)):
                space = piece.namespace
                if space != key and not space.startswith(f"{key}/"):
                    raise ValueError(f"codes.{key}: the piece {space} is not below {key}")
                taken = space in named or (space in self.codes and (space != key or number > 0))
                if taken or "//" in space:
                    raise ValueError(f"codes.{key}: the namespace {space} of a piece has another meaning too")
                named[space] = key
        return self

    def token_rules(self) -> dict[str, Any]:
        """What tokens depend on, as JSON: what a stage's fingerprint holds."""
        return self.model_dump(mode="json", exclude=set(NOT_TOKENS) | {"rules"})


def with_rules(profiles: Any, base: Path) -> Any:
    """A configuration's `profiles` with each one's rules filled in; what is no mapping is left to its validation.

    Args:
        base: the folder that a rules file's path is relative to.

    Raises:
        TimeloomError: no such rules.
    """
    if not isinstance(profiles, dict):
        return profiles
    return {name: _filled(str(name), given or {}, base) for name, given in profiles.items()}


def _filled(name: str, given: Any, base: Path) -> Any:
    if not isinstance(given, dict):
        return given
    rules = str(given.get("rules") or (name if name in BUILT_IN else "mehrt"))
    kept = read_rules(rules, base)
    codes = given.get("codes", {})
    if isinstance(codes, dict):
        # A rule that is taken back is null.
        codes = {key: rule for key, rule in (kept.get("codes", {}) | codes).items() if rule is not None}
    return kept | given | {"rules": rules, "codes": codes}


def read_rules(rules: str, base: Path = Path()) -> dict[str, Any]:
    """The keys of a built-in profile or of a YAML file.

    Raises:
        TimeloomError: neither, or no YAML mapping.
    """
    path = _FOLDER / f"{rules}.yaml" if rules in BUILT_IN else base / Path(rules).expanduser()
    try:
        read = read_yaml(path, path.name, "docs/profiles.md")
    except OSError as error:
        raise TimeloomError(
            f"there are no profile rules {rules}", remedy=f"name {', '.join(BUILT_IN)} or an existing YAML file"
        ) from error
    if not isinstance(read, dict):
        raise TimeloomError(f"{path.name} holds no profile rules", remedy="see docs/profiles.md")
    return read


def built_in(name: str, **keys: Any) -> ProfileConfig:
    """A built-in profile with single keys overridden."""
    return ProfileConfig.model_validate(_filled(name, keys, Path()))
