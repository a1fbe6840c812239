"""What the definition of a task can say: one YAML of it is a task, and a run's configuration overrides single keys.

The built-in ones stand in definitions/; each is a proposal and says why. docs/tasks.md explains every key.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from extractors.yaml_files import explain, read_yaml
from pipelines.tasks.codes import CodeList
from warehouse.configuration import Settings
from warehouse.errors import TimeloomError

PAGE = "docs/tasks.md"
_FOLDER = Path(__file__).parent / "definitions"
BUILT_IN = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
DEATH, BIRTH = "death", "birth"
# What a list is for that a release may lack: where nothing is an order, nothing gives way.
ORDER = "order"
# A list of codes, by its name in codes.yaml, in `labels.codes` or, behind the task's name, in the task's own `codes`.
ListName = Annotated[str, Field(pattern=r"^([A-Za-z0-9_-]{1,64}\.)?[a-z0-9_]{1,64}$")]
# By the kind of stay, the lists of its start and its end.
STAYS = {"hospital": ("hospital_start", "hospital_end"), "icu": ("icu_start", "icu_end")}

FIXED = frozenset({DEATH, BIRTH, *(name for pair in STAYS.values() for name in pair)})


class Requirement(Settings):
    """What must have happened at or before the prediction time.

    Attributes:
        codes: a list of codes.
        within_days: how far back; null for any time.
        least: so many codes, 1 or 2; with 2 they must lie `apart_days` from one another.
        apart_days: days between the first and the last of them in the window.
    """

    codes: ListName
    within_days: int | None = Field(default=None, ge=0)
    least: Literal[1, 2] = 1
    apart_days: int = Field(default=30, ge=0)


class Index(Settings):
    """The event at which a prediction is made: a list of codes, or a stay.

    Attributes:
        event: the list of codes of the event; the prediction time is when it could be known.
        which: the subject's `first`, or `each`.
        stay: instead of an event, a stay of this kind.
        at: of a stay its `start`, its `end`, or the `first_end` within each stay of the kind `within`.
        within: the kind of stay that encloses it, which ends the window of the outcome.
        requires: what must be known by then. A first event without it has no label: no later one takes its place,
            unless `first_of` is `qualifying`.
        first_of: the first of `all` such events, or of those that are `qualifying`, which meet `requires`.
        orders: a list of codes of what is ordered and not yet given. A first event that is one gives way to the first
            that is none, where that comes within `order_days`; an order that nothing follows counts.
        order_days: days that an order waits for what is given.
        washin_days: days that the record must reach back before it.
        min_age: years, by the calendar; null asks for no age.
    """

    event: ListName | None = None
    which: Literal["first", "each"] = "first"
    stay: Literal["hospital", "icu"] | None = None
    at: Literal["start", "end", "first_end"] = "start"
    within: Literal["hospital"] | None = None
    requires: tuple[Requirement, ...] = ()
    first_of: Literal["all", "qualifying"] = "all"
    orders: ListName | None = None
    order_days: int = Field(default=7, ge=0)
    washin_days: int = Field(default=0, ge=0)
    min_age: int | None = Field(default=None, ge=0, le=120)

    @model_validator(mode="after")
    def _one_kind(self) -> "Index":
        if (self.event is None) == (self.stay is None):
            raise ValueError("name either an event or a stay")
        if self.within is not None and (self.stay != "icu" or self.at == "start"):
            raise ValueError("within goes with stay: icu and at: end or first_end")
        if self.at == "first_end" and self.within is None:
            raise ValueError("first_end needs within")
        if self.orders is not None and (self.stay is not None or self.which != "first"):
            raise ValueError("orders gives way to a first event: it goes with event and which: first")
        return self


class Outcome(Settings):
    """One component of the outcome; the earliest of them counts.

    Attributes:
        codes: a list of codes.
        prior: where it was known by the prediction time: `exclude` the subject, `void` the component alone, or `allow`.
        grace_days: days after the prediction time in which it is taken to have been there before.
        from_days: days after the prediction time before which it does not count.
    """

    codes: ListName
    prior: Literal["exclude", "void", "allow"] = "exclude"
    grace_days: int = Field(default=0, ge=0)
    from_days: int = Field(default=0, ge=0)


class FollowUp(Settings):
    """What proves that somebody was observed to the horizon's end.

    Attributes:
        clock: an event behind the horizon's end by its `time`, or by the task's `clock`.
        register_days: of tasks whose outcome is death alone: days after the last discharge from hospital up to which a
            register knows each death; null for none.
    """

    clock: Literal["time", "clock"] = "time"
    register_days: int | None = Field(default=None, ge=0)


class TaskConfig(Settings):
    """A task.

    Attributes:
        definition: the built-in task or YAML file that the other keys override; the task's own name if built in.
        id: what names this very definition, with its version at the end: `onc.mortality.v1`.
        title, prose: what it asks, in a line and in full.
        proposal: why it is a proposal, and what is chosen.
        clock: facts count from when they could be known, or from their `time`.
        codes: lists of codes that the task adds, or that take the place of others for this task alone.
        index: when a prediction is made.
        outcomes: what is predicted; strictly after the prediction time.
        horizon_days: days after the prediction time, the last included; null where the end of the stay ends the window.
        exclude: lists of codes that must not be known by the prediction time.
        prior_by: by which clock an outcome was there before: the task's, or `either`, which takes out what had happened
            and was not known yet.
        same_day: an outcome of which only the day is known, on the day of the prediction: `prior`, or `after` it.
        date_deaths: a death of which only the day is known, on the day on which a stay ends: in the stay (`day`), or
            behind it (`end_of_day`).
        censoring: who has no outcome and is not seen up to the horizon's end: `exclude`, or `negative`.
        competing_death: who dies within the window without an outcome: `exclude`, `negative` or `positive`.
        follow_up: what proves that somebody was observed.
        after_death: facts whose time is after death: `ignore`, or `keep`. Nobody is predicted after his death.
        absent: where no code of the index event or of the outcome is in the release: `withhold` the labels, or `accept`
            that there are none.
    """

    definition: str | None = None
    id: str = Field(pattern=r"^[a-z0-9_.]+\.v[0-9]+$")
    title: str = Field(min_length=1)
    prose: str = ""
    proposal: str = Field(min_length=1)
    clock: Literal["available_time", "time"] = "available_time"
    codes: dict[ListName, CodeList] = Field(default_factory=dict)
    index: Index
    outcomes: tuple[Outcome, ...] = Field(min_length=1)
    horizon_days: int | None = Field(default=None, ge=1)
    exclude: tuple[ListName, ...] = ()
    prior_by: Literal["clock", "either"] = "clock"
    same_day: Literal["prior", "after"] = "prior"
    date_deaths: Literal["day", "end_of_day"] = "day"
    censoring: Literal["exclude", "negative"] = "exclude"
    competing_death: Literal["exclude", "negative", "positive"] = "exclude"
    follow_up: FollowUp = FollowUp()
    after_death: Literal["ignore", "keep"] = "ignore"
    absent: Literal["withhold", "accept"] = "withhold"

    @model_validator(mode="after")
    def _has_an_end(self) -> "TaskConfig":
        if self.index.stay is None and self.horizon_days is None:
            raise ValueError("horizon_days is missing: only a stay has an end of its own")
        if self.index.at == "end" and self.horizon_days is None:
            raise ValueError("horizon_days is missing: behind the end of a stay nothing else ends the window")
        if self.follow_up.register_days is not None and {outcome.codes for outcome in self.outcomes} != {DEATH}:
            raise ValueError("follow_up.register_days: a register of deaths proves no absence of another outcome")
        if fixed := sorted(self.codes.keys() & FIXED):
            raise ValueError(f"codes.{fixed[0]} holds for every task: write it under labels.codes")
        return self

    def with_lists(self, renamed: Mapping[str, str]) -> "TaskConfig":
        """The same task, reading other lists in place of some."""

        def named(name: str) -> str:
            return renamed.get(name, name)

        requires = [need.model_copy(update={"codes": named(need.codes)}) for need in self.index.requires]
        events = {key: getattr(self.index, key) for key in ("event", "orders")}
        renamed_events = {key: None if name is None else named(name) for key, name in events.items()}
        index = self.index.model_copy(update={"requires": tuple(requires), **renamed_events})
        outcomes = tuple(part.model_copy(update={"codes": named(part.codes)}) for part in self.outcomes)
        update = {"index": index, "outcomes": outcomes, "exclude": tuple(map(named, self.exclude)), "codes": {}}
        return self.model_copy(update=update)

    @property
    def version(self) -> int:
        """The number at the end of the id."""
        return int(self.id.rpartition(".v")[2])

    def rules(self) -> dict[str, Any]:
        """What labels depend on, as JSON: what a stage's fingerprint holds."""
        return self.model_dump(mode="json", exclude={"definition", "title", "prose", "proposal"})

    @property
    def _outcome_lists(self) -> list[str]:
        return [outcome.codes for outcome in self.outcomes]

    def lists(self) -> dict[str, str]:
        """The lists of codes that it reads, and what each is for."""
        named = {requirement.codes: "required" for requirement in self.index.requires}
        named |= dict.fromkeys(self.exclude, "exclusion")
        if self.follow_up.register_days is not None:
            named["hospital_end"] = "follow-up"
        if self.index.min_age is not None or self.index.washin_days:
            named[BIRTH] = "age" if self.index.min_age is not None else "wash-in"
        if self.index.orders is not None:
            named[self.index.orders] = ORDER
        named[DEATH] = "death"
        if self.index.stay is not None:
            # Whether somebody is in such a stay already hangs on its end.
            named |= {end: "prior outcome" for start, end in STAYS.values() if start in self._outcome_lists}
        named |= dict.fromkeys(self._outcome_lists, "outcome")
        for stay in (self.index.stay, self.index.within):
            if stay is not None:
                named |= dict.fromkeys(STAYS[stay], "index event")
        if self.index.event is not None:
            named[self.index.event] = "index event"
        return named


def bare(name: str) -> str:
    """A list's name, without that of the task whose own it is."""
    return name.rpartition(".")[2]


def read_definition(name: str, base: Path = Path()) -> dict[str, Any]:
    """The keys of a built-in task or of a YAML file.

    Raises:
        TimeloomError: neither, or no YAML mapping.
    """
    path = _FOLDER / f"{name}.yaml" if name in BUILT_IN else base / Path(name).expanduser()
    try:
        read = read_yaml(path, path.name, PAGE)
    except OSError as error:
        raise TimeloomError(
            f"there is no task {name}", remedy=f"name {', '.join(BUILT_IN)} or an existing YAML file"
        ) from error
    if not isinstance(read, dict):
        raise TimeloomError(f"{path.name} holds no task", remedy=f"see {PAGE}")
    return read


def filled(name: str, given: Any, base: Path, below: tuple[Path, ...] = ()) -> Any:
    """A task's keys, those of its definition filled in, which may name another one; what is no mapping is left to its
    validation.

    Args:
        name: of the task in the configuration; that of a built-in one where `given` names no definition.
        base: the folder that a definition's path is relative to.
        below: files of definitions that named this one.

    Raises:
        TimeloomError: no such definition, or one that names itself.
    """
    if given is None:
        given = {}
    if not isinstance(given, dict):
        return given
    definition = given.get("definition") or (name if name in BUILT_IN else None)
    if definition is None:
        return given
    kept = read_definition(str(definition), base)
    if kept.get("definition") is not None:
        path = (base / Path(str(definition)).expanduser()).resolve()
        if path in below:
            raise TimeloomError(f"the definition {path.name} names itself", remedy=f"see {PAGE}")
        kept = filled("", kept, path.parent, (*below, path))
    nested = {
        key: kept[key] | given[key]
        for key in ("index", "follow_up")
        if isinstance(kept.get(key), dict) and isinstance(given.get(key), dict)
    }
    return kept | given | nested | {"definition": str(definition)}


def built_in(name: str, **keys: Any) -> TaskConfig:
    """A built-in task with single keys overridden."""
    return TaskConfig.model_validate(filled(name, keys, Path()))


def load_task(path: str, base: Path = Path()) -> TaskConfig:
    """A built-in task, or one from a YAML file.

    Raises:
        TimeloomError: missing, no YAML, or invalid: one line that names the key, and the nearest known one.
    """
    given = read_definition(path, base)
    folder = base if path in BUILT_IN else (base / Path(path).expanduser()).parent
    name = Path(path).name
    try:
        return TaskConfig.model_validate(filled(path, given | {"definition": given.get("definition")}, folder))
    except ValidationError as error:
        raise TimeloomError(f"{name}: {explain(error, TaskConfig)}", remedy=f"see {PAGE}") from error
