"""Who a subject is, as far as it was known by a prediction time: gender, ethnicity, age at the first event."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from warehouse.arrays import I64, NO_TIME
from warehouse.readers.tasks.counting import BIRTH, EventRows, LabelRows, Units, within

AGE = "age_at_first_event"
# Ages from here on are one, as in tokens.
OLDEST = 90
_DAY_US = 86_400_000_000
_DAYS_A_YEAR = 365.2425
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class KnownFacts:
    """Of labels (n,): the age in years, NaN where it is not known; and facts (m,) as label and place of their code."""

    age: npt.NDArray[np.float64]
    row: I64
    code: I64


class BucketDemographics:
    """Demographics of a bucket's labels, gathered from its events.

    Of several values of an attribute the first that was known counts, and that a value is unknown is none where
    another one is known.
    """

    def __init__(self, labels: LabelRows, units: Units, attributes: tuple[str, ...]) -> None:
        """Args:
        attributes: what their codes begin with, up to a slash: `DEMO/SEX`.
        """
        self._labels = labels
        self._attribute = np.full(len(units.codes), -1, np.int64)
        for number, attribute in enumerate(attributes):
            self._attribute[within(units.codes, [attribute])] = number
        self._unstated = units.codes.str.ends_with("/UNKNOWN").to_numpy()
        self._birth = (units.codes == BIRTH).to_numpy()
        size = len(labels.time)
        self._born, self._first = np.full(size, _NEVER), np.full(size, _NEVER)
        none = dict.fromkeys(("row", "attribute", "code", "known"), pl.Int64)
        self._facts = [pl.DataFrame(schema=none)]

    def add(self, events: EventRows) -> None:
        """Takes events up."""
        row = self._labels.first_knowing(events.subject, events.known)
        timed = (row >= 0) & (events.time != NO_TIME)
        birth = self._birth[events.code]
        for times, which in ((self._born, timed & birth), (self._first, timed & ~birth)):
            np.minimum.at(times, row[which], events.time[which])
        attribute = self._attribute[events.code]
        fact = np.flatnonzero((row >= 0) & (attribute >= 0))
        self._facts.append(
            pl.DataFrame(
                {
                    "row": row[fact],
                    "attribute": attribute[fact],
                    "code": events.code[fact],
                    "known": events.known[fact],
                }
            )
        )

    def known_facts(self) -> KnownFacts:
        """What each label knows."""
        born, first = self._so_far(self._born), self._so_far(self._first)
        known = (born != _NEVER) & (first != _NEVER)
        age = np.full(len(born), np.nan)
        # From the interval, which a date shift keeps.
        days = (first[known] - born[known]) // _DAY_US
        age[known] = np.clip(days / _DAYS_A_YEAR, 0, OLDEST)
        facts = pl.concat(self._facts)
        places, rows = self._labels.later(facts["row"].to_numpy())
        unstated = pl.Series("unstated", self._unstated[facts["code"].to_numpy()])
        spread = facts.with_columns(unstated)[places].with_columns(pl.Series("row", rows))
        chosen = spread.sort("row", "attribute", "unstated", "known", "code").unique(
            ["row", "attribute"], keep="first", maintain_order=True
        )
        return KnownFacts(age, chosen["row"].to_numpy(), chosen["code"].to_numpy())

    def _so_far(self, times: I64) -> I64:
        """The least of each label's times and those of its subject's labels before."""
        frame = pl.DataFrame({"subject": self._labels.subject, "time": times})
        return frame.select(pl.col("time").cum_min().over("subject")).to_series().to_numpy()
