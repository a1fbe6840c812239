"""One bucket's labels, held against its events: whether each is made of what was known by then.

Nothing here reads a definition: an event of the subject must have become known at the very moment of a prediction, and
nobody is predicted after his death, whatever the task is.
"""

from collections.abc import Mapping

import polars as pl

from validation.measure.files.events import DEATH, Part
from validation.measure.reading import gather
from validation.measure.tally import Tally
from warehouse.arrays import NO_TIME
from warehouse.layout import ReleaseLayout
from warehouse.schemas import LABELS

KEYS = ["subject_id", "prediction_time"]
AUDITED = ("labels", "repeated", "unknown_by_then", "after_death")
_DIED: dict[str, pl.DataType | type[pl.DataType]] = {"subject_id": pl.Int64, "died": pl.Datetime("us")}


class LabelAudit:
    """Labels of a bucket, and what its events say of their moments.

    Args:
        clocks: by task, the time of events that its predictions are made at: `time` or `available_time`.
    """

    def __init__(self, tree: ReleaseLayout, bucket: int, clocks: Mapping[str, str]) -> None:
        self._clocks = clocks
        self._labels = {name: gather([tree.labels(name, bucket)], LABELS, KEYS) for name in clocks}
        self._asked = {
            clock: pl.concat([frame for name, frame in self._labels.items() if clocks[name] == clock]).unique()
            for clock in set(clocks.values())
        }
        self._known: dict[str, list[pl.DataFrame]] = {clock: [frame.clear()] for clock, frame in self._asked.items()}
        self._deaths = [pl.DataFrame(schema=_DIED)]
        self.asked = any(frame.height for frame in self._labels.values())

    def add(self, part: Part) -> None:
        """Looks for the moments of labels among a part's events."""
        timed = part.time != NO_TIME
        for clock, asked in self._asked.items():
            times = part.time if clock == "time" else part.available
            moments = pl.DataFrame({"subject_id": part.subject, "prediction_time": times}).filter(
                pl.Series(timed & (times != NO_TIME))
            )
            moments = moments.with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
            self._known[clock].append(moments.join(asked, on=KEYS, how="semi").unique())
        died = part.texts["code"].starting(DEATH, separator="/") & timed & (part.available != NO_TIME)
        deaths = pl.DataFrame({"subject_id": part.subject[died], "died": part.available[died]})
        self._deaths.append(deaths.with_columns(pl.col("died").cast(pl.Datetime("us"))))

    def count(self, tally: Tally) -> None:
        """Adds AUDITED of each task."""
        known = {clock: pl.concat(parts) for clock, parts in self._known.items()}
        deaths = pl.concat(self._deaths).group_by("subject_id").agg(pl.col("died").min())
        for name, labels in self._labels.items():
            dead = labels.join(deaths, on="subject_id").filter(pl.col("died") <= pl.col("prediction_time"))
            numbers = (
                labels.height,
                labels.height - labels.unique().height,
                labels.join(known[self._clocks[name]], on=KEYS, how="anti").height,
                dead.height,
            )
            tally.count("labels", dict(zip(AUDITED, numbers, strict=True)), of=name)
