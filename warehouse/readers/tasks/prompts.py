"""Prompts: where a timeline is cut so that a model goes on from a task's start, and what ends its continuation.

Sources: ETHOS-ARES (hospital_mortality.py, mimic_icu.py): a prompt ends at the start event with the tokens of its own
moment that describe it; a continuation ends at an outcome, at the end of the timeline, or at the horizon.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from warehouse.arrays import I64
from warehouse.errors import TimeloomError
from warehouse.tokens import TIMELINE_END


@dataclass(frozen=True)
class Prompt:
    """A task as prompts ask it. Tokens are named by what they begin with, up to a slash.

    Attributes:
        start: tokens of the event that a prompt ends at, at the prediction time; empty for all that is known by then.
        following: further tokens of that moment: so many behind the start, or up to the last of those named.
        stop: tokens that end a continuation; the end of a timeline does besides.
        positive: those of them that make it positive.
        horizon_days: a continuation ends there.
    """

    start: tuple[str, ...] = ()
    following: int | tuple[str, ...] = 0
    stop: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    horizon_days: float = 730.0


# What stands beside an admission in ETHOS's timelines. The code of a stay holds its type, or its unit, by itself.
_OF_ADMISSION = ("ADMISSION_TYPE", "INSURANCE")
# How MIMIC-IV, OMOP and the simulated hospital name the ends of stays.
_HOSPITAL, _ICU = (
    ("VISIT/IP", "VISIT/ERIP", "OMOP/9201", "OMOP/262"),
    ("VISIT/OMOP4822460", "OMOP/32037"),
)
_ADMISSION = ("HOSPITAL_ADMISSION", *(f"VISIT_START/{name}" for name in _HOSPITAL), "ENCOUNTER_START/INPATIENT")
_DISCHARGE = ("HOSPITAL_DISCHARGE", *(f"VISIT_END/{name}" for name in _HOSPITAL), "ENCOUNTER_END/INPATIENT")
_ICU_ADMISSION, _ICU_DISCHARGE = (
    (name, *(f"{visit}_{end}/{code}" for visit in ("VISIT", "VISIT_DETAIL") for code in _ICU), f"ENCOUNTER_{end}/ICU")
    for name, end in (("ICU_ADMISSION", "START"), ("ICU_DISCHARGE", "END"))
)
_DEATH = ("MEDS_DEATH",)
PROMPTS: Mapping[str, Prompt] = {
    "hospital_mortality": Prompt(_ADMISSION, _OF_ADMISSION, (*_DISCHARGE, *_DEATH), _DEATH),
    "icu_mortality": Prompt(_ICU_ADMISSION, ("ICU_TYPE",), (*_ICU_DISCHARGE, *_DEATH), _DEATH),
    # A death outside intensive care counts as positive, as in ETHOS's code.
    "icu_admission": Prompt(
        _ADMISSION, _OF_ADMISSION, (*_ICU_ADMISSION, *_DISCHARGE, *_DEATH), (*_ICU_ADMISSION, *_DEATH)
    ),
    "icu_readmission": Prompt(_ICU_DISCHARGE, 0, (*_ICU_ADMISSION, *_DISCHARGE, *_DEATH), _ICU_ADMISSION),
}


def prompt_of(task: object) -> Prompt:
    """The prompt of a task that has one built in.

    Raises:
        TimeloomError: there is none.
    """
    if not isinstance(task, str) or task not in PROMPTS:
        raise TimeloomError(
            "there is no prompt of this task", remedy=f"give prompt=Prompt(...); built in are {', '.join(PROMPTS)}"
        )
    return PROMPTS[task]


@dataclass(frozen=True)
class PromptIds:
    """A prompt by token ids, ascending."""

    start: I64
    following: int | I64
    stop: I64
    positive: I64

    @classmethod
    def of(cls, prompt: Prompt, tokens: Sequence[str]) -> "PromptIds":
        """Args:
        tokens: the vocabulary, by id.

        Raises:
            TimeloomError: the profile has no token of the start.
        """
        following = prompt.following
        start = _ids(prompt.start, tokens)
        if prompt.start and not len(start):
            raise TimeloomError(
                f"the profile has no token of {prompt.start[0]}", remedy="give prompt=Prompt(start=...) in its tokens"
            )
        return cls(
            start,
            following if isinstance(following, int) else _ids(following, tokens),
            _ids((*prompt.stop, TIMELINE_END), tokens),
            _ids(prompt.positive, tokens),
        )


def _ids(beginnings: Sequence[str], tokens: Sequence[str]) -> I64:
    whole, parts = set(beginnings), tuple(f"{name}/" for name in beginnings)
    found = [number for number, token in enumerate(tokens) if token in whole or token.startswith(parts)]
    return np.array(found, np.int64)
