"""The one YAML of a run: validated whole before any work, an unknown key answered with the nearest known one."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from embedders.encoders.build import EncoderConfig
from embedders.encoders.spec import settings_at_odds
from extractors.deid import DeidConfig
from extractors.extractor import Extractor, ModalitySettings
from extractors.modalities import EXTRACTORS
from extractors.reading import Reading
from extractors.vectors.settings import BY_FOLDER, BY_NAME, BY_PATH, ImportedConfig
from extractors.yaml_files import explain, read_yaml
from pipelines.clinifuse.settings import DuplicatesConfig, GraphsConfig, TripletsConfig
from pipelines.limits import LimitsConfig
from pipelines.profiles.rules import ProfileConfig, built_in, with_rules
from pipelines.splitting.schemes import SCHEMES, SplitConfig
from pipelines.tasks.settings import LabelsConfig
from warehouse.configuration import LocatedPath, Settings, located
from warehouse.errors import TimeloomError

_PAGE = "docs/configuration.md"
# Keys of earlier versions, and where what they said stands now.
MOVED = {
    "images": "modalities, with a block for each modality: its path, its crosswalk and its own settings",
    "encoders": "the encoder into its modality's block: modalities.<name>.encoder",
}
# What a crosswalk may match items by and no item is named by alone.
_SUBJECTS = ("patient_id",)
# Names that become folders.
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class SourceConfig(Settings):
    """A source's mapping, by name or YAML file, and the folder with its tables, or the DuckDB file.

    Attributes:
        crosswalks: files that the site supplies, by the names that the source gives them.
        reading: how this site wrote its tables, laid over what the source says of it.
    """

    source: str
    path: LocatedPath
    crosswalks: dict[str, LocatedPath] = Field(default_factory=dict)
    reading: Reading = Reading()


class ModalityConfig(ModalitySettings):
    """A modality's files, and the encoders of its items. Each modality's block has its own settings besides.

    Attributes:
        encoder: the only one.
        encoders: several, side by side: each has a store of its own, with a vector of every item that it can read.
    """

    encoder: EncoderConfig | None = None
    encoders: list[EncoderConfig] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _either(self) -> "ModalityConfig":
        if (self.encoder is None) == (self.encoders is None):
            raise ValueError("give `encoder`, or `encoders` for several, and not both")
        names = [encoder.called for encoder in self.all_encoders]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two encoders are called {twice[0]}: give one of them an alias of its own")
        return self

    @property
    def all_encoders(self) -> list[EncoderConfig]:
        """Every encoder, in the order in which they are named."""
        return self.encoders or ([self.encoder] if self.encoder else [])

    @model_validator(mode="before")
    @classmethod
    def _of_vectors(cls, raw: Any, info: ValidationInfo) -> Any:
        """Without a path of its own a modality has the vectors alone: they lie where its items do."""
        if not isinstance(raw, dict):
            return raw
        encoders = [raw.get("encoder"), *(raw.get("encoders") or ())]
        declared = [each["imported"] for each in encoders if isinstance(each, dict) and each.get("imported")]
        paths = [each["path"] for each in declared if isinstance(each, dict) and "path" in each]
        if "path" not in raw:
            return {**raw, "path": paths[0]} if paths else raw
        if located(raw["path"], info) in [located(path, info) for path in paths]:
            raise ValueError(
                "`path` and imported.path are one folder: leave `path` out where there are vectors alone, or give them "
                "a folder of their own"
            )
        return raw

    @property
    def vectors_alone(self) -> ImportedConfig | None:
        """The imported vectors that are the modality's items, where it has no raw files; their path is its own."""
        found = [encoder.imported for encoder in self.all_encoders if encoder.imported]
        return next((imported for imported in found if imported.path == self.path), None)


# What of a block an index does not depend on.
ENCODER_KEYS = frozenset({"encoder", "encoders"})


def modality_blocks() -> type[BaseModel]:
    """The model of `modalities`: one field a modality, with its own settings and an encoder."""
    return _blocks(tuple(EXTRACTORS.items()))


@cache
def _blocks(extractors: tuple[tuple[str, Extractor], ...]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for name, extractor in extractors:
        block = create_model(extractor.settings.__name__, __base__=(extractor.settings, ModalityConfig))
        fields[name] = (block, None)
    return create_model("Modalities", __base__=Settings, **fields)


def _misfit(modality: str, block: ModalityConfig) -> str | None:
    """What an encoder of a modality takes and the modality does not give."""
    if block.vectors_alone and block.keeps_texts:
        return f"modalities.{modality}.keep_text: there are vectors and no texts: give `path`"
    for encoder in block.all_encoders:
        try:
            if encoder.imported:
                fault = _unmatched(modality, encoder.imported)
            elif block.vectors_alone:
                fault = f"modalities.{modality} has vectors and no files that {encoder.name} could read: give `path`"
            else:
                fault = settings_at_odds(encoder, modality, block)
        except TimeloomError as error:
            return str(error)
        if fault is not None:
            return fault
    return None


def _unmatched(modality: str, imported: ImportedConfig) -> str | None:
    """That vectors are to be matched by what the modality's items do not have."""
    named = (match for match in EXTRACTORS[modality].matches if match not in _SUBJECTS)
    known = tuple(dict.fromkeys((BY_NAME, BY_PATH, BY_FOLDER, *named)))
    return None if imported.match in known else f"modalities.{modality}: imported.match is one of {', '.join(known)}"


class EmbeddingConfig(Settings):
    """How and where images are read and encoded; nothing here changes what is stored.

    Attributes:
        workers: who encodes: the processes of the night (`here`), which workers of other machines may help, or only
            those workers (`elsewhere`): `timeloom embed --worker`.
        wait: with workers elsewhere: until every item has its vector, or its verdict. With false the release is made of
            what is encoded by then, and what is not waits for a next night.
        worker_timeout: seconds after which a night that waits ends, where no worker shows any life.
        lease_seconds: a worker that shows no life for so long loses the bucket that it fills.
        decoders: processes that read images for each GPU, or each worker on the CPU; with 0 a worker reads them itself.
            Where not given: the machine's cores on a GPU, 0 on the CPU.
        memory_mb: shared memory of a worker's decoders.
        checkpoint_seconds: at most so much work is lost when a run is killed.
        decode_timeout: seconds after which a decoder that says nothing is taken to hang.
    """

    decoders: int | None = Field(default=None, ge=0, le=256)
    memory_mb: int = Field(default=2048, ge=64)
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    decode_timeout: float = Field(default=600.0, gt=0)
    workers: Literal["here", "elsewhere"] = "here"
    wait: bool = True
    worker_timeout: float = Field(default=3600.0, gt=0)
    lease_seconds: float = Field(default=60.0, ge=1)

    @model_validator(mode="after")
    def _somebody_encodes(self) -> "EmbeddingConfig":
        if not self.wait and self.workers == "here":
            raise ValueError("wait: false is for workers: elsewhere; the night's own processes encode what it needs")
        return self


class KeepConfig(Settings):
    """What `timeloom gc` leaves. The current release, the one before it, those that the gate compares with and those
    that a reader holds stay in any case.

    Attributes:
        daily, weekly, monthly: of so many days, weeks and months in which a release was made, the latest one of each.
        releases: ids of releases that stay, however old they are.
        segments: of so many releases, the latest, segments and what was found in images stay, so that those nights can
            be made again after the raw files have changed.
        logs: logs of runs that stay, the latest.
        nightly: every run ends by collecting.
    """

    daily: int = Field(default=7, ge=0)
    weekly: int = Field(default=4, ge=0)
    monthly: int = Field(default=12, ge=0)
    releases: tuple[str, ...] = ()
    segments: int = Field(default=2, ge=1)
    logs: int = Field(default=90, ge=0)
    nightly: bool = True


# What the numbers of buckets and of pack groups are where a configuration says nothing.
_NUMBERS = {"buckets": 64, "pack_groups": "auto"}


class RunConfig(Settings):
    """A whole run.

    Attributes:
        modalities: what items there are: a block for each modality, with its files and its encoders.
        buckets: files that subjects are spread over; `auto` leaves the number to the first run, which takes what suits
            the export.
        pack_groups: in how many runs of buckets timelines are packed; left to the first run too where not given.
        left_open: which of these two numbers are.
        profiles: named token profiles: a built-in name, or any name with `rules`; a key overrides the rules.
        splits: named schemes, all kept at once; the first is the one that MEDS tools see. Null takes the fractions of
            SCHEMES.
        labels: the tasks that are labelled; those that are built in where not given, unless there is no held_out.
        merges: a CSV with columns old and new, the subject ids that the hospital has merged.
        graphs: graphs of visits; none where not given.
        duplicates: copies among pictures and texts; none are looked for where not given.
        triplets: images, text and record of studies; none where not given.
        keep: which releases stay; all of them where not given.
        on_publish: a program and its arguments, started once for each release, without a shell.
    """

    name: str = "timeloom"
    root: LocatedPath | None = None
    sources: list[SourceConfig] = Field(min_length=1)
    modalities: dict[str, SerializeAsAny[ModalityConfig]] = Field(default_factory=dict)
    embedding: EmbeddingConfig = EmbeddingConfig()
    deid: DeidConfig = DeidConfig()
    buckets: int = Field(default=64, ge=1, le=9999)
    pack_groups: int = Field(default=1, ge=1)
    left_open: frozenset[str] = Field(default=frozenset(), exclude=True)
    splits: dict[FolderName, SplitConfig] = Field(default_factory=lambda: {"mehrt": SCHEMES["mehrt"]}, min_length=1)
    merges: LocatedPath | None = None
    profiles: dict[FolderName, ProfileConfig] = Field(default_factory=lambda: {"mehrt": built_in("mehrt")})
    labels: LabelsConfig = Field(default_factory=LabelsConfig)
    graphs: GraphsConfig | None = None
    duplicates: DuplicatesConfig | None = None
    triplets: TripletsConfig | None = None
    limits: LimitsConfig = LimitsConfig()
    keep: KeepConfig | None = None
    workers: int | None = Field(default=None, ge=1)
    on_publish: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _locate(cls, raw: Any, info: ValidationInfo) -> Any:
        """Fills in the profiles' rules, which lie in other files."""
        if not isinstance(raw, dict):
            return raw
        for old, new in MOVED.items():
            if old in raw:
                raise ValueError(f"the key {old} is gone: write {new}")
        filled = dict(raw)
        if "left_open" in raw:
            raise ValueError("the key left_open is not known: write buckets: auto")
        # Open until the run knows its root and its export; there are at least as many buckets as groups that are named.
        left_open = {name for name, default in _NUMBERS.items() if raw.get(name, default) == "auto"}
        for name in left_open:
            filled.pop(name, None)
        if "buckets" in left_open and isinstance(raw.get("pack_groups"), int):
            filled["buckets"] = max(64, raw["pack_groups"])
        filled["left_open"] = left_open
        if "profiles" in raw:
            filled["profiles"] = with_rules(raw["profiles"], (info.context or {}).get("base", Path()))
        filled.setdefault("labels", {} if _evaluates(raw.get("splits")) else {"tasks": {}})
        return filled

    @field_validator("modalities", mode="wrap")
    @classmethod
    def _of_each(cls, raw: Any, handler: Any, info: ValidationInfo) -> dict[str, ModalityConfig]:
        blocks = modality_blocks().model_validate(raw, context=info.context)
        given = {name: getattr(blocks, name) for name in EXTRACTORS}
        lacking = [name for name, block in given.items() if block is not None and block.crosswalk is None]
        for name in lacking:
            if EXTRACTORS[name].needs_crosswalk or given[name].vectors_alone:
                raise ValueError(f"{name} items have no subject of their own: give modalities.{name}.crosswalk")
        for name, block in given.items():
            matches = EXTRACTORS[name].matches
            if block is not None and block.vectors_alone:
                matches = (*matches, "path")
            if block is not None and block.crosswalk is not None and block.crosswalk.match not in matches:
                raise ValueError(
                    f"modalities.{name}.crosswalk.match is {block.crosswalk.match}; {name} items are named by "
                    + ", ".join(matches)
                )
            fault = None if block is None else _misfit(name, block)
            if fault is not None:
                raise ValueError(fault)
        return {name: block for name, block in given.items() if block is not None}

    @field_validator("splits", mode="before")
    @classmethod
    def _built_in(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        unknown = [str(name) for name, fractions in raw.items() if fractions is None and name not in SCHEMES]
        if unknown:
            raise ValueError(f"{unknown[0]} needs its fractions; built in are {', '.join(SCHEMES)}")
        return {name: SCHEMES[name] if fractions is None else fractions for name, fractions in raw.items()}

    @property
    def primary_scheme(self) -> str:
        """The scheme of metadata/subject_splits.parquet, and of profiles that name none."""
        return next(iter(self.splits))

    def profile(self, name: str) -> ProfileConfig:
        """A profile's rules, with the scheme that it is fitted on and packed by, and the encoder of each modality."""
        rules = self.profiles[name]
        only = {modality: block.all_encoders[0].called for modality, block in self.modalities.items()}
        return rules.model_copy(
            update={"scheme": rules.scheme or self.primary_scheme, "encoders": only | dict(rules.encoders)}
        )

    @model_validator(mode="after")
    def _checked(self) -> "RunConfig":
        for name, profile in self.profiles.items():
            if profile.scheme is not None and profile.scheme not in self.splits:
                raise ValueError(
                    f"profiles.{name}.scheme {profile.scheme} is not among splits: {', '.join(self.splits)}"
                )
            fault = self._encoders_at_odds(name, profile)
            if fault is not None:
                raise ValueError(fault)
        for name, block in self.modalities.items():
            if block.keeps_texts and not self.deid.allows_texts:
                raise ValueError(
                    f"modalities.{name}.keep_text needs deid.mode: limited with dates: keep, which say that the site's "
                    "texts are pseudonymised already, or deid.mode: synthetic"
                )
        scheme = self.labels.scheme or self.primary_scheme
        if scheme not in self.splits:
            raise ValueError(f"labels.scheme {scheme} is not among splits: {', '.join(self.splits)}")
        if self.labels.tasks and self.splits[scheme].held_out == 0:
            raise ValueError(f"labels: the scheme {scheme} has no held_out, on which models are evaluated")
        named = {
            "duplicates": [self.duplicates.scheme] if self.duplicates else [],
            "triplets": [self.triplets.scheme, *(self.triplets.keep_out or ())] if self.triplets else [],
        }
        for key, schemes in named.items():
            unknown = [name for name in schemes if name is not None and name not in self.splits]
            if unknown:
                raise ValueError(f"{key} names the scheme {unknown[0]}, which is not among {', '.join(self.splits)}")
        compared = (*self.duplicates.images, *self.duplicates.texts) if self.duplicates else ()
        for name in compared:
            if name in self.modalities and self.modalities[name].vectors_alone:
                raise ValueError(f"duplicates: of {name} there are vectors alone, and nothing to compare: leave it out")
        if self.pack_groups > self.buckets:
            raise ValueError("pack_groups cannot exceed buckets")
        return self

    def _encoders_at_odds(self, name: str, profile: ProfileConfig) -> str | None:
        """What is wrong with the encoders that a profile names, or does not name."""
        for modality, encoder in profile.encoders.items():
            if modality not in self.modalities:
                return f"profiles.{name}.encoders.{modality}: modalities has no block {modality}"
            known = [each.called for each in self.modalities[modality].all_encoders]
            if encoder not in known:
                return f"profiles.{name}.encoders.{modality}: {modality} has no encoder {encoder}: {', '.join(known)}"
        for modality, block in self.modalities.items():
            names = [each.called for each in block.all_encoders]
            if len(names) > 1 and modality not in profile.encoders:
                return (
                    f"profiles.{name} must say whose vectors its {modality} tokens carry: set"
                    f" profiles.{name}.encoders.{modality} to one of {', '.join(names)}"
                )
        return None


def _evaluates(splits: Any) -> bool:
    """Whether the first scheme of a configuration, as it is written, has a held_out."""
    first = next(iter(splits.values()), None) if isinstance(splits, dict) else None
    return not isinstance(first, dict) or first.get("held_out") != 0


def parse_config(raw: Any, base: Path, name: str) -> RunConfig:
    """Validates a configuration.

    Raises:
        TimeloomError: one line that names the key, and the nearest known one.
    """
    try:
        return RunConfig.model_validate(raw, context={"base": base})
    except ValidationError as error:
        said = explain(error, RunConfig, {"modalities": modality_blocks()})
        raise TimeloomError(f"{name}: {said}", remedy=f"see {_PAGE}") from error


def load_config(path: Path) -> RunConfig:
    """Reads and validates a configuration file.

    Raises:
        TimeloomError: missing, no YAML, or invalid.
    """
    try:
        raw = read_yaml(path, path.name, _PAGE)
    except OSError as error:
        raise TimeloomError(f"cannot read the configuration {path}", remedy="give an existing file") from error
    if not isinstance(raw, dict):
        raise TimeloomError(f"{path.name} holds no configuration", remedy=f"see {_PAGE}")
    return parse_config(raw, path.parent.resolve(), path.name)
