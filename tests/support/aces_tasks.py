"""Built-in tasks, their switches set to what ES-ACES can say."""

from collections.abc import Mapping
from typing import Any

from pipelines.tasks.definition import TaskConfig, built_in

# What ACES can say: it knows no dates, no ages and no visits.
EXPRESSIBLE: Mapping[str, dict[str, Any]] = {
    "mortality": {},
    "metastasis": {},
    "aki_icd": {},
    "aki_kdigo": {},
    "neutropenic_fever": {},
    "transfusion": {},
    "hospital_mortality": {},
    "icu_mortality": {},
    "icu_admission": {"outcomes": [{"codes": "icu_start", "prior": "allow"}, {"codes": "death"}]},
    "icu_readmission": {},
}


def expressible(name: str, clock: str = "available_time") -> TaskConfig:
    """A built-in task, its switches set to what ACES can say."""
    keys: dict[str, Any] = {"same_day": "after", "date_deaths": "end_of_day", "after_death": "keep", "clock": clock}
    keys |= {"follow_up": {"clock": "clock"}, **EXPRESSIBLE[name]}
    if built_in(name).index.event is not None:
        keys["index"] = {"min_age": None}
    return built_in(name, **keys)
