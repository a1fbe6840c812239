"""The block `labels` of a run's configuration: which tasks, by which codes, and what is derived for them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipelines.tasks.codes import CodeList, built_in_lists, entries_of, lists_within
from pipelines.tasks.definition import BUILT_IN, FIXED, ListName, TaskConfig, filled
from warehouse.configuration import LocatedPath, Settings

# Names that become folders.
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class KdigoConfig(Settings):
    """Stages of acute kidney injury by creatinine.

    Attributes:
        units: mg/dL that one of each unit is; a row without a unit has that of its code (`molar`, else mg/dL).
        molar: codes whose unit is µmol/L.
        plausible: mg/dL, the least and the most that a value may be; others are set aside and counted.
        rise: mg/dL above the lowest of the `rise_hours` before: stage 1.
        ratio_days: days before, of which the lowest is what ratios are against.
        ratios: of stages 1, 2 and 3.
        severe: mg/dL from which a rise is of stage 3.
        otherwise: the baseline where `ratio_days` hold no value: the `median_year` before them, or `none`.
    """

    units: dict[str, float] = Field(
        default_factory=lambda: {"mg/dl": 1.0, "mg/l": 0.1, "umol/l": 1 / 88.4, "mmol/l": 1000 / 88.4}
    )
    molar: tuple[str, ...] = ("LOINC/14682-9",)
    plausible: tuple[float, float] = (0.05, 40.0)
    rise: float = Field(default=0.3, gt=0)
    rise_hours: int = Field(default=48, ge=1)
    ratio_days: int = Field(default=7, ge=1)
    ratios: tuple[float, float, float] = (1.5, 2.0, 3.0)
    severe: float = Field(default=4.0, gt=0)
    otherwise: str = Field(default="median_year", pattern="^(median_year|none)$")


# A unit: a value plus the second number, times the first, is in the unit of the rules.
Unit = tuple[float, float]
_FAHRENHEIT: Unit = (5 / 9, -32.0)


class MeasuredConfig(Settings):
    """What a measured value is in one unit.

    Attributes:
        units: by how a unit is spelled in small letters; a row of another unit is set aside.
        of_codes: the unit of a code whose row has none; of other codes it is the rules' own.
        plausible: the least and the most that a value may be; others are set aside and counted.
    """

    units: dict[str, Unit]
    of_codes: dict[str, Unit] = Field(default_factory=dict)
    plausible: tuple[float, float]


class FeverConfig(Settings):
    """Neutropenic fever, by codes and by measured values.

    Attributes:
        days: of codes, neutropenia and fever lie at most so far apart, where they are not of one visit.
        pancytopenia: pancytopenia by chemotherapy counts as neutropenia.
        hours: of values, so far apart.
        neutrophils_below: 10⁹/L.
        temperature_once: °C of one value that is a fever.
        temperature_held: °C that is one where `held_minutes` later nothing below was measured.
        held_minutes: see there.
        neutrophils, temperature: what values are in 10⁹/L and in °C.
    """

    days: int = Field(default=3, ge=0)
    pancytopenia: bool = False
    hours: int = Field(default=24, ge=1)
    neutrophils_below: float = Field(default=1.0, gt=0)
    temperature_once: float = 38.3
    temperature_held: float = 38.0
    held_minutes: int = Field(default=60, ge=1)
    neutrophils: MeasuredConfig = MeasuredConfig(
        units={
            **dict.fromkeys(("10*9/l", "10^9/l", "10*3/ul", "10^3/ul", "k/ul", "thou/ul"), (1.0, 0.0)),
            **dict.fromkeys(("/ul", "cells/ul", "{cells}/ul", "#/ul"), (0.001, 0.0)),
        },
        plausible=(0.0, 200.0),
    )
    temperature: MeasuredConfig = MeasuredConfig(
        units={
            **dict.fromkeys(("cel", "c", "°c", "degc", "celsius"), (1.0, 0.0)),
            **dict.fromkeys(("[degf]", "f", "°f", "degf", "fahrenheit"), _FAHRENHEIT),
        },
        of_codes={"CHART/223761": _FAHRENHEIT, "ED_VITAL/TEMPERATURE": _FAHRENHEIT},
        plausible=(30.0, 45.0),
    )


class LinesConfig(Settings):
    """Lines of therapy.

    Attributes:
        days: drugs that start within so many days belong to the line; one outside it that starts later begins another.
        most: lines that are told apart.
    """

    days: int = Field(default=28, ge=1)
    most: int = Field(default=20, ge=1, le=100)


class DerivedConfig(Settings):
    """What is derived of events, for labels alone.

    Attributes:
        kdigo, neutropenic_fever, lines: the rules of each.
    """

    kdigo: KdigoConfig = KdigoConfig()
    neutropenic_fever: FeverConfig = FeverConfig()
    lines: LinesConfig = LinesConfig()


class LabelsConfig(Settings):
    """What is labelled.

    Attributes:
        tasks: by name, built-in ones or any name with a `definition`; a key overrides the definition. `all` names the
            built-in ones; an empty mapping makes no labels.
        codes: lists of codes that take the place of those of timeloom, or are added to them.
        mappings: CSV files with the columns code and parent: what else a code is one of, for labels alone.
        parents_of_none: namespaces whose codes are no fact of their parents' kind: the end of a drug is no drug.
        derived: rules of derived events.
        scheme: the split scheme that attrition is counted by; where not given, the first.
    """

    tasks: dict[TaskName, TaskConfig] = Field(
        default_factory=lambda: {name: TaskConfig.model_validate(filled(name, {}, Path())) for name in BUILT_IN}
    )
    codes: dict[ListName, CodeList] = Field(default_factory=dict)
    mappings: tuple[LocatedPath, ...] = ()
    parents_of_none: tuple[str, ...] = (
        "*_END", "CAUSE_OF_DEATH", "HOME_MEDICATION", "ALLERGY", "ENCOUNTER_REASON", "MICROBIOLOGY_SPECIMEN",
    )  # fmt: skip
    derived: DerivedConfig = DerivedConfig()
    scheme: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, raw: Any, info: ValidationInfo) -> Any:
        tasks = raw.get("tasks") if isinstance(raw, dict) else None
        if tasks == "all":
            tasks = {name: {} for name in BUILT_IN}
        if not isinstance(tasks, dict):
            return raw
        base = (info.context or {}).get("base", Path())
        return raw | {"tasks": {name: filled(str(name), given, base) for name, given in tasks.items()}}

    @field_validator("tasks", mode="after")
    @classmethod
    def _ids_once(cls, tasks: dict[str, TaskConfig]) -> dict[str, TaskConfig]:
        seen: dict[str, str] = {}
        for name, task in tasks.items():
            if task.id in seen and task.rules() != tasks[seen[task.id]].rules():
                raise ValueError(f"{name} and {seen[task.id]} have the id {task.id} and other rules: change it")
            seen[task.id] = name
        return tasks

    @model_validator(mode="after")
    def _known_lists(self) -> "LabelsConfig":
        known = built_in_lists() | self.codes
        for name, codes in known.items():
            for other in codes.lists:
                if other not in known:
                    raise ValueError(f"codes.{name} names the list {other}, which there is not")
        for name, task in self.tasks.items():
            lists = known | task.codes
            wanted = [*task.lists(), *(other for codes in task.codes.values() for other in codes.lists)]
            for other in wanted:
                if other not in lists:
                    raise ValueError(f"tasks.{name} names the list {other}, which is not among codes: add it there")
            unread = sorted(task.codes.keys() - lists_within(task.lists(), lists))
            if unread:
                raise ValueError(
                    f"tasks.{name}.codes.{unread[0]} is read by no rule of the task: what derived events are made of "
                    "stands under labels.codes"
                )
        return self

    @property
    def read_tasks(self) -> dict[str, TaskConfig]:
        """The tasks, each naming its own lists where it has some; see `all_lists`."""
        return {
            name: task.with_lists({of: f"{name}.{of}" for of in task.lists() if of not in FIXED})
            if task.codes
            else task
            for name, task in self.tasks.items()
        }

    def all_lists(self) -> dict[str, CodeList]:
        """Timeloom's lists of codes and the site's; of a task with lists of its own all that it reads, named for it."""
        known = built_in_lists() | self.codes
        found = dict(known)
        for name, task in self.tasks.items():
            for wanted in task.lists() if task.codes else ():
                held, left_out = entries_of(wanted, known | task.codes)
                found[f"{name}.{wanted}"] = CodeList(any=tuple(held), without=tuple(left_out))
        return found
