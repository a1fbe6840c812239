"""The manifest: what a release holds, from what it was made, and whether it is whole."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from warehouse.errors import REPAIR, TimeloomError
from warehouse.files import sha256_file, sha256_json, xxh3_file
from warehouse.sealed import sealed_bytes, write_sealed

FORMAT_VERSION = 4
# The oldest that is read: without a checksum of its own.
UNSEALED_VERSION = 2


class FileEntry(BaseModel):
    """One file of a release.

    Attributes:
        rows: null for what is not a table.
        xxh3: XXH3-128 of its bytes, hexadecimal, which readers check before the first use; null where none was made.
    """

    model_config = ConfigDict(frozen=True)
    sha256: str
    bytes: int
    rows: int | None = None
    xxh3: str | None = None

    def is_as_long_as(self, path: Path) -> bool:
        """Whether a file is there with as many bytes."""
        return path.is_file() and path.stat().st_size == self.bytes

    def is_of(self, path: Path) -> bool:
        """Whether a file is there with these bytes, told by XXH3-128 where the entry has it; else by SHA-256."""
        if not self.is_as_long_as(path):
            return False
        return sha256_file(path) == self.sha256 if self.xxh3 is None else xxh3_file(path) == self.xxh3


class TaskEntry(BaseModel):
    """One task: reused by a later run whose task has the same fingerprint.

    Attributes:
        fingerprint: SHA-256 over stage, version, parameters and the hashes of the inputs.
        files: paths relative to the task's base directory.
        counts: what the stage counted; JSON, no patient's value.
        rules: SHA-256 over all of the fingerprint that is no subject's content; null where the task copies no subject
            from the release before, and in a release of an older timeloom.
        because: by name, a short hash of each part of the fingerprint; none in a release of an older timeloom.
        continued: by path, the hashes of the files of the release before that the task went on from; null for one that
            was not there.
    """

    model_config = ConfigDict(frozen=True)
    fingerprint: str
    files: dict[str, FileEntry]
    counts: dict[str, Any] = Field(default_factory=dict)
    rules: str | None = None
    because: dict[str, str] = Field(default_factory=dict)
    continued: dict[str, str | None] = Field(default_factory=dict)


class Deidentification(BaseModel):
    """How identifiers and dates were treated; a declaration, not a claim of compliance."""

    model_config = ConfigDict(frozen=True)
    mode: str
    subject_ids: str
    dates: str
    key_fingerprint: str


class EncoderEntry(BaseModel):
    """An encoder that made vectors of a modality.

    Attributes:
        name: what profiles and readers call it; in a release of an older timeloom, its network's.
        label: for people.
        store: the folder of its vectors.
        weights_sha256: of its weights; of imported vectors, over the hashes of the files that they were taken from.
        verdicts: the items that it was to read, by what became of them; none in a release of an older timeloom.
    """

    model_config = ConfigDict(frozen=True)
    name: str = ""
    label: str
    store: str
    dim: int
    weights_sha256: str | None = None
    verdicts: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and not raw.get("name"):
            store = str(raw.get("store", ""))
            return {**raw, "name": store.rpartition("-")[0] or store}
        return raw


class BudgetEntry(BaseModel):
    """A token budget: a prefix of train's subjects in the scheme's fixed order, so that each holds the ones before it.

    Attributes:
        asked: loss-bearing tokens, as configured.
        tokens: loss-bearing tokens that it has: at least `asked`, by less than its last subject's, where train has as
            many.
        all_tokens: tokens that it has.
        subjects: whole subjects; none is cut.
        files: the budget is train's shards with numbers below this.
    """

    model_config = ConfigDict(frozen=True)
    asked: int
    tokens: int
    all_tokens: int
    subjects: int
    files: int


class PlanEntry(BaseModel):
    """One way in which a profile's timelines were laid into packs.

    Attributes:
        mode, subjects, images: as configured; see docs/shards.md.
        groups: shard files of a split; of train with budgets, of each tier.
        loss: whose targets the budgets count; null without budgets.
        tokens: by split, tokens that the shards hold.
        dropped: by split, tokens of the timelines that the plan leaves out, by reason. Both together are the
            timelines' tokens.
    """

    model_config = ConfigDict(frozen=True)
    context: int
    mode: str = "packed"
    subjects: str = "all"
    images: bool = True
    groups: int
    loss: str | None = None
    budgets: tuple[BudgetEntry, ...] = ()
    tokens: dict[str, int] = Field(default_factory=dict)
    dropped: dict[str, dict[str, int]] = Field(default_factory=dict)

    def files(self, split: str, budget: int | None = None) -> int:
        """How many shard files a split has, or the budget of that index: their numbers are 0, 1, …"""
        if split != "train" or not self.budgets:
            return self.groups
        return self.budgets[-1 if budget is None else budget].files


class ProfileEntry(BaseModel):
    """A token profile of the release.

    Attributes:
        scheme: the split scheme that its vocabulary was fitted and its shards were divided by.
        rules_hash: SHA-256 of the rules that make tokens of events.
        left_out: namespaces of which the profile makes no token on purpose.
        stores: by modality, the store whose vectors its image tokens carry; of a release of an older timeloom none:
            each modality has one.
        order: by which of their times events stand, and what the times of tokens are.
        unknown: attributes of subjects that stand at the start as unknown where no value is.
        plans: by name; the profile's own is `default`.
    """

    model_config = ConfigDict(frozen=True)
    vocabulary_hash: str
    vocabulary_size: int
    scheme: str
    rules_hash: str
    left_out: tuple[str, ...] = ()
    stores: dict[str, str] = Field(default_factory=dict)
    order: str = "available_time"
    unknown: tuple[str, ...] = ()
    plans: dict[str, PlanEntry]

    @property
    def context(self) -> int:
        """Tokens a pack of the profile's own plan."""
        return self.plans["default"].context

    def plan(self, profile: str, name: str) -> PlanEntry:
        """A plan by its name.

        Raises:
            TimeloomError: there is none of that name.
        """
        if name not in self.plans:
            raise TimeloomError(
                f"profile {profile} has no plan {name} in this release",
                remedy=f"choose one of: {', '.join(self.plans)}; or add profiles.{profile}.plans.{name} and run again",
            )
        return self.plans[name]


class LabelsEntry(BaseModel):
    """The labels of a task.

    Attributes:
        id: names the definition.
        rules: every key of the definition that labels depend on.
        rules_hash: SHA-256 of them.
        scheme: the split scheme that attrition is counted by.
        positive, negative: labels.
        withheld: why there are none although the task asks for them; a line each.
        lacks: what else the release lacks for it; a line each.
    """

    model_config = ConfigDict(frozen=True)
    id: str
    title: str
    rules: dict[str, Any]
    rules_hash: str
    scheme: str
    positive: int
    negative: int
    withheld: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


class GraphsEntry(BaseModel):
    """The graphs of visits.

    Attributes:
        rules: the configuration, without the site's files.
        without_start: visits that no event begins. out_of_order: visits whose end lies before their start.
        nodes: by type.
        edges: those that are written; where all nodes of a visit occur together, the rules say so.
        without_visit: by type, events that would be nodes and are of no visit.
    """

    model_config = ConfigDict(frozen=True)
    rules: dict[str, Any]
    visits: int
    without_start: int
    out_of_order: int
    nodes: dict[str, int]
    edges: int
    without_visit: dict[str, int]


class DuplicatesEntry(BaseModel):
    """Copies among pictures and texts.

    Attributes:
        scheme: whose splits they were held against.
        found: by modality and method (`exact`, `near`): items `compared` and `left_out`, `groups` of copies, `copies`
            in them, groups `of_several_subjects` and `across_splits`, and items `set_aside`.
    """

    model_config = ConfigDict(frozen=True)
    rules: dict[str, Any]
    scheme: str
    found: dict[str, dict[str, dict[str, int]]]


class TripletsEntry(BaseModel):
    """Triplets of images, text and record.

    Attributes:
        scheme: whose splits they have.
        triplets: by split, those that are usable. set_aside: the others, by reason.
    """

    model_config = ConfigDict(frozen=True)
    rules: dict[str, Any]
    scheme: str
    triplets: dict[str, int]
    set_aside: dict[str, int]


class ContentEntry(BaseModel):
    """How much a part of the release holds: what the next releases are compared with.

    Attributes:
        kind: `table`, `source`, `modality`; `namespace`, of one table's events; `tokens`, of a profile's namespace;
            `profile`.
        within: a table's source, a namespace's table as `source/table`, a tokens' profile; else empty.
        counts: by measure (`rows` without duplicates, `events`, `subjects`, `items` that are usable, `tokens`; of a
            profile, train's `clinical` events and those `in_tokens`). `alone` is how many of the subjects no other
            table knows.
    """

    model_config = ConfigDict(frozen=True)
    kind: str
    name: str
    within: str = ""
    counts: dict[str, int]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.name, self.within


class LossEntry(BaseModel):
    """A loss that a person agreed to: from this release on nothing is compared with what was before.

    Attributes:
        kind, name, within: as of the ContentEntry that lost.
        measure: what was lost.
        before, now: how much of it there was at most in the releases before, and is.
    """

    model_config = ConfigDict(frozen=True)
    kind: str
    name: str
    within: str = ""
    measure: str
    before: int
    now: int

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.name, self.within


class Manifest(BaseModel):
    """manifest.json. `content_hash` covers every file outside quality/, whatever made it and when.

    `root` is what was fixed when the root was made: root.json is remade of it. `records` are the names, without their
    endings, of the segments and private files that it was made of. `keys` has a short hash of the value of each key of
    its configuration.
    """

    model_config = ConfigDict(frozen=True)
    format_version: int = FORMAT_VERSION
    release_id: str
    parent: str | None
    created_at: str
    run_id: str
    buckets: int
    deid: Deidentification
    config_hash: str
    split_scheme: str
    split_hash: str
    encoders: dict[str, tuple[EncoderEntry, ...]]
    profiles: dict[str, ProfileEntry]
    labels: dict[str, LabelsEntry] = Field(default_factory=dict)
    graphs: GraphsEntry | None = None
    duplicates: DuplicatesEntry | None = None
    triplets: TripletsEntry | None = None
    stages: dict[str, int]
    sources: dict[str, str]
    verdicts: dict[str, dict[str, int]]
    texts: int = 0  # of items, in texts/
    content_hash: str
    tasks: dict[str, TaskEntry]
    files: dict[str, FileEntry]
    contents: tuple[ContentEntry, ...] = ()  # none in a release that was made before they were counted
    accepted_losses: tuple[LossEntry, ...] = ()
    root: dict[str, Any] | None = None  # none in a release of an older timeloom
    records: tuple[str, ...] = ()  # likewise
    keys: dict[str, str] = Field(default_factory=dict)  # likewise

    @field_validator("encoders", mode="before")
    @classmethod
    def _several(cls, raw: Any) -> Any:
        """A modality had one encoder before it could have several."""
        if not isinstance(raw, dict):
            return raw
        return {name: [entry] if isinstance(entry, dict | EncoderEntry) else entry for name, entry in raw.items()}

    def encoder(self, modality: str, name: str | None = None) -> EncoderEntry:
        """An encoder of a modality, by its name; where none is given, the only one.

        Raises:
            TimeloomError: the modality has no such encoder, or several and none is named.
        """
        found = {entry.name: entry for entry in self.encoders.get(modality, ())}
        if not found:
            known = ", ".join(self.encoders) or "none"
            raise TimeloomError(f"the release has no vectors of {modality}", remedy=f"choose one of: {known}")
        if name is None and len(found) == 1:
            return next(iter(found.values()))
        if name not in found:
            said = f"no {modality} encoder {name}" if name else f"several {modality} encoders"
            raise TimeloomError(f"the release has {said}", remedy=f"name one of: {', '.join(found)}")
        return found[name]

    def encoders_of(self, profile: str, named: Mapping[str, str] | None = None) -> dict[str, EncoderEntry]:
        """By modality, the encoder whose vectors a profile's image tokens carry, or the one that `named` gives instead.

        Raises:
            TimeloomError: `named` names what the release does not have.
        """
        chosen = {modality: self.encoder(modality, name) for modality, name in (named or {}).items()}
        stores = self.profiles[profile].stores
        for modality, entries in self.encoders.items():
            of_profile = [entry for entry in entries if stores.get(modality) in (None, entry.store)]
            chosen.setdefault(modality, of_profile[0] if of_profile else entries[0])
        return {modality: chosen[modality] for modality in self.encoders}


def content_hash(files: dict[str, FileEntry]) -> str:
    """One hash of a release's data: every file but the report's."""
    return sha256_json({path: entry.sha256 for path, entry in files.items() if not path.startswith("quality/")})


def tokenised_shares(manifest: Manifest) -> dict[str, float]:
    """By profile, the share of clinical events that became tokens; none in a release that does not count them."""
    counts = {entry.name: entry.counts for entry in manifest.contents if entry.kind == "profile"}
    return {name: found["in_tokens"] / found["clinical"] for name, found in counts.items() if found["clinical"]}


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes manifest.json with a checksum of itself, atomically."""
    write_sealed(path, manifest.model_dump(mode="json"))


def read_manifest(path: Path) -> Manifest:
    """Reads manifest.json.

    Raises:
        TimeloomError: missing, changed by a byte, or of another format.
    """
    try:
        raw = json.loads(sealed_bytes(path, older=True))
        sealed = "checksum" in raw
        if sealed and raw.get("format_version", 0) > FORMAT_VERSION:
            raise TimeloomError(f"the release {raw.get('release_id')} has a newer format", remedy="upgrade timeloom")
        if not sealed and raw.get("format_version", 0) > UNSEALED_VERSION:
            raise ValueError("a manifest of this format has a checksum")
        if raw.get("format_version", 0) < UNSEALED_VERSION:
            raise TimeloomError(
                f"the release {raw.get('release_id')} was made by an older timeloom, in format {raw['format_version']}",
                remedy="make a new root with this version, or read it with the version that made it",
            )
        return Manifest.model_validate(raw)
    except (OSError, ValueError, KeyError, AttributeError, ValidationError) as error:
        raise TimeloomError(
            f"the manifest of release {path.parent.name} is missing or damaged", remedy=REPAIR
        ) from error
