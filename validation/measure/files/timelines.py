"""One bucket's timelines, some subjects at a time, each column once: lengths, intervals, what plans keep."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from validation.measure.cohort.subjects import DAY_S, DAY_US, IMAGING, KINDS, STRUCTURED
from validation.measure.files.events import split_of
from validation.measure.files.losses import loss_of
from validation.measure.shards.token_sums import hash_tokens, kept_by, per_subject, running
from warehouse.arrays import F64, I64, NO_TIME, Bools, numbers_of
from warehouse.manifest import PlanEntry
from warehouse.parquet import subjects_together
from warehouse.schemas import MEASURES, SPLITS
from warehouse.tokens import TokenType

PART_ROWS = 1 << 20
_COLUMNS = ["subject_id", "token_id", "type", "time", "item_key"]


@dataclass(frozen=True)
class Tokens:
    """Some subjects' timelines.

    Attributes:
        time: (n,) µs, NO_TIME where there is none.
        key: (n,) String.
    """

    subject: I64
    token_id: npt.NDArray[np.uint32]
    kind: npt.NDArray[np.uint8]
    time: I64
    key: pl.Series

    @property
    def is_image(self) -> Bools:
        image: Bools = self.kind == int(TokenType.IMAGE)
        return image

    @property
    def starts(self) -> I64:
        """Where another subject begins."""
        return np.flatnonzero(np.append([True], self.subject[1:] != self.subject[:-1])[: len(self.subject)])

    def take(self, rows: I64 | Bools) -> "Tokens":
        """Some of the tokens, in the order of `rows`."""
        key = self.key.filter(pl.Series(rows)) if rows.dtype == np.bool_ else self.key.gather(rows)
        return Tokens(self.subject[rows], self.token_id[rows], self.kind[rows], self.time[rows], key)

    def together(self) -> "Tokens":
        """The same tokens, a subject's together; as they are where no id is less than the one before."""
        if not (self.subject[1:] < self.subject[:-1]).any():
            return self
        return self.take(np.argsort(self.subject, kind="stable"))


def read_tokens(path: Path) -> Iterator[Tokens]:
    """A bucket's timelines, whole subjects and about PART_ROWS tokens at a time.

    Raises:
        TimeloomError: the file is damaged.
    """
    tables = subjects_together(
        path, lambda file, groups: file.read_row_groups(groups, _COLUMNS), PART_ROWS, ["item_key"]
    )
    for table in tables:
        key = pl.Series("item_key", table["item_key"].cast(pa.string()), dtype=pl.String)
        yield Tokens(
            subject=numbers_of(table["subject_id"], 0),
            token_id=numbers_of(table["token_id"], 0),
            kind=numbers_of(table["type"], 0),
            time=numbers_of(table["time"].cast(pa.timestamp("us")).cast(pa.int64()), NO_TIME),
            key=key,
        )


class TimelineMeasures:
    """What is measured of a bucket's timelines of one profile.

    Args:
        plans: of the profile, by name.
    """

    def __init__(self, plans: Mapping[str, PlanEntry]) -> None:
        self._plans = plans
        self._kept = sorted({kept_by(plan) for plan in plans.values()}, key=lambda kept: (kept.images, kept.last or 0))
        self._sums: list[pl.DataFrame] = []
        self._losses: list[pl.DataFrame] = []

    def add(self, tokens: Tokens) -> None:
        """Adds up what plans keep of some timelines."""
        starts, ends = _edges(tokens)
        image = np.append(0, np.cumsum(tokens.is_image))
        counts = {
            "subject_id": tokens.subject[starts],
            "given": ends - starts,
            "images": image[ends] - image[starts],
        }
        counted = pl.DataFrame(counts).group_by("subject_id", maintain_order=True).sum()
        for with_images in sorted({kept.images for kept in self._kept}):
            left = tokens if with_images or not image[-1] else tokens.take(~tokens.is_image)
            first, last = _edges(left)
            hashes = running(_hashes(left, first, last))
            for kept in [kept for kept in self._kept if kept.images == with_images]:
                begin = first if kept.last is None else np.maximum(first, last - kept.last)
                summed = pl.DataFrame({"subject_id": left.subject[first], "sum": hashes[last] - hashes[begin]})
                self._sums.append(
                    counted.join(per_subject([summed]), on="subject_id", how="left", maintain_order="left").select(
                        "subject_id",
                        "given",
                        "images",
                        pl.lit(with_images).alias("with_images"),
                        pl.lit(kept.last, pl.Int64).alias("last"),
                        pl.col("sum").fill_null(0),
                    )
                )
        for name, plan in self._plans.items():
            if plan.loss:
                loss = loss_of(tokens.subject, tokens.kind, plan)
                self._losses.append(loss.select(pl.lit(name).alias("plan"), "subject_id", "loss"))

    def tables(self) -> dict[str, pl.DataFrame]:
        """`timelines`, and `losses` where a plan has budgets."""
        sums = pl.concat([_empty("timelines"), *self._sums])
        tables = {"timelines": sums}
        if any(plan.loss for plan in self._plans.values()):
            tables["losses"] = pl.concat([_empty("losses"), *self._losses])
        return tables


def _edges(tokens: Tokens) -> tuple[I64, I64]:
    starts = tokens.starts
    return starts, np.append(starts, len(tokens.subject))[1:]


def _hashes(tokens: Tokens, starts: I64, ends: I64) -> npt.NDArray[np.uint64]:
    place = np.arange(len(tokens.subject))
    place -= np.repeat(starts, ends - starts)
    has_key = tokens.is_image & tokens.key.is_not_null().to_numpy()
    at = np.flatnonzero(has_key)
    return hash_tokens(place, tokens.token_id, tokens.kind, tokens.time, at, tokens.key.gather(at))


class IntervalMeasures:
    """Lengths of subjects' timelines, the time between their tokens, and how often so much time lies between two.

    Args:
        subjects: `subject_id`, `split`, and `imaging`, whether he has an image: those whose gaps are counted.
    """

    def __init__(self, subjects: pl.DataFrame) -> None:
        self._subjects = subjects
        self._lengths: list[pl.DataFrame] = []
        self._gaps: list[pl.DataFrame] = []

    def add(self, tokens: Tokens) -> None:
        """Measures some timelines."""
        tokens = tokens.together()
        starts, ends = _edges(tokens)
        image = np.append(0, np.cumsum(tokens.is_image))
        subjects = tokens.subject[starts]
        given = ends - starts
        lengths = {"subject_id": subjects, "structured": given - (image[ends] - image[starts]), "tokens": given}
        frame = pl.DataFrame(lengths)
        for population in (STRUCTURED, IMAGING):
            moments = Moments.of(tokens, KINDS[population])
            frame = frame.join(moments.means(population), on="subject_id", how="left", maintain_order="left")
            members = self._subjects if population == STRUCTURED else self._subjects.filter("imaging")
            if members.height:
                self._gaps.append(moments.gaps(members).select(pl.lit(population).alias("population"), pl.all()))
        self._lengths.append(frame)

    def tables(self) -> dict[str, pl.DataFrame]:
        """`lengths` and `gaps` of the bucket."""
        keys = ["population", "split", "seconds"]
        lengths = [frame.select(MEASURES["lengths"].names) for frame in self._lengths]
        return {
            "lengths": pl.concat([_empty("lengths"), *lengths]),
            "gaps": pl.concat([_empty("gaps"), *self._gaps]).group_by(keys).sum().sort(keys),
        }


@dataclass(frozen=True)
class Moments:
    """The moments of some kinds of tokens, each subject's together and in order.

    Attributes:
        subject, time: (m,) a row for each token with a time.
        new: (m,) the first of its subject and moment.
    """

    subject: I64
    time: I64
    new: Bools

    @classmethod
    def of(cls, tokens: Tokens, kinds: tuple[TokenType, ...]) -> "Moments":
        """Of tokens whose subjects stand together."""
        wanted = np.isin(tokens.kind, [int(kind) for kind in kinds]) & (tokens.time != NO_TIME)
        subject, time = tokens.subject[wanted], tokens.time[wanted]
        same = subject[1:] == subject[:-1]
        if (same & (time[1:] < time[:-1])).any():
            order = np.lexsort([time, subject])
            subject, time = subject[order], time[order]
            same = subject[1:] == subject[:-1]
        new = np.append([True], ~same | (time[1:] != time[:-1]))[: len(subject)]
        return cls(subject, time, new)

    def means(self, population: str) -> pl.DataFrame:
        """`subject_id`, `interval_tokens_<population>`, `interval_times_<population>`, in days; null below two."""
        starts = np.flatnonzero(np.append([True], self.subject[1:] != self.subject[:-1])[: len(self.subject)])
        ends = np.append(starts, len(self.subject))[1:]
        distinct = np.append(0, np.cumsum(self.new))
        days = (self.time[ends - 1] - self.time[starts]) / DAY_US
        numbers = {"tokens": ends - starts, "times": distinct[ends] - distinct[starts]}
        return pl.DataFrame(
            {"subject_id": self.subject[starts]}
            | {f"interval_{name}_{population}": _mean(days, number - 1) for name, number in numbers.items()},
            schema_overrides={"subject_id": pl.Int64},
        ).with_columns(pl.col(pl.Float64).fill_nan(None))

    def gaps(self, members: pl.DataFrame) -> pl.DataFrame:
        """`split`, `seconds` (a gap, rounded down), `gaps` (how many); of what they have beyond these seconds `rest`,
        the sum in µs, and `squares`, that of squares in ms²: whole numbers, whose sums are exact in any order.

        In whole seconds, in whole minutes from one day on, so that distinct ones stay few.
        """
        subject, time = self.subject[self.new], self.time[self.new]
        same = subject[1:] == subject[:-1]
        gap = (time[1:] - time[:-1])[same]
        starts = np.flatnonzero(np.append([True], subject[1:] != subject[:-1])[: len(subject)])
        split = np.repeat(split_of(subject[starts], members), np.diff(np.append(starts, len(subject))))[1:][same]
        seconds = gap // 1_000_000
        seconds = np.where(seconds < DAY_S, seconds, seconds // 60 * 60)
        rest = gap - seconds * 1_000_000
        return (
            pl.DataFrame({"place": split, "seconds": seconds, "rest": rest, "squares": (rest // 1000) ** 2})
            .filter(pl.col("place") < len(SPLITS))
            .group_by("place", "seconds")
            .agg(pl.len().cast(pl.Int64).alias("gaps"), pl.col("rest", "squares").sum())
            .select(
                pl.col("place").replace_strict(range(len(SPLITS)), list(SPLITS), return_dtype=pl.String).alias("split"),
                "seconds",
                "gaps",
                "rest",
                "squares",
            )
        )


def _mean(days: F64, gaps: I64) -> F64:
    mean: F64 = np.divide(days, gaps, out=np.full(len(days), np.nan), where=gaps > 0)
    return mean


def _empty(area: str) -> pl.DataFrame:
    frame = pl.from_arrow(MEASURES[area].empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame
