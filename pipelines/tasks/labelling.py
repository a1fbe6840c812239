"""Labels of one bucket: who is a candidate, who is left out by which rule, and what the answer is.

Everything is compared by subject: what another subject has is never found. A fact counts when it could be known, or by
its time, as the task's clock says: what is known at the prediction time or before it is history, what comes after it
may be the outcome.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from pipelines.tasks.attrition import COUNTED, NO_SPLIT, Attrition
from pipelines.tasks.definition import BIRTH, DEATH, STAYS, Index, Outcome, Requirement, TaskConfig, bare
from pipelines.tasks.facts import Facts
from pipelines.tasks.instants import DAY, NEVER, Instants, shifted
from pipelines.tasks.stays import Stays, stays_of
from warehouse.arrays import I64, NO_TIME, Bools


@dataclass(frozen=True)
class Candidates:
    """Those of whom a prediction might be made.

    Attributes:
        subject: places (n,).
        moment: µs (n,), the prediction time; NEVER where there is none.
        since: µs (n,), where the candidate's stay begins; NO_TIME without one.
        stop: µs (n,), the last moment at which the outcome counts; NEVER where the stay has no end.
        before: µs (n,), a moment before which the outcome must be; NEVER for none.
        over: which (n,) are observed up to `stop`, whatever comes after it.
    """

    subject: I64
    moment: I64
    since: I64
    stop: I64
    before: I64
    over: Bools

    @classmethod
    def of(cls, subject: I64, moment: I64) -> "Candidates":
        """Candidates without a stay; the stop is the horizon's, see `with_horizon`."""
        never, none = np.full(len(subject), NEVER), np.full(len(subject), NO_TIME)
        return cls(subject, moment, none, never, never, np.zeros(len(subject), np.bool_))

    def with_horizon(self, days: int | None) -> "Candidates":
        """The same, the window of the outcome ending after so many days at the latest."""
        if days is None:
            return self
        horizon = shifted(self.moment, days)
        return Candidates(
            self.subject,
            self.moment,
            self.since,
            np.minimum(self.stop, horizon),
            self.before,
            self.over & (self.stop <= horizon),
        )


class BucketLabels:
    """Makes the labels of tasks of one bucket.

    Args:
        facts: rows of every list that the tasks name, derived ones among them.
        members: `code`, `list`, as pipelines.tasks.codes.resolve gives them.
        splits: `subject_id`, `split` of the scheme.
        counted: how many of the last subjects get no labels: it is only counted, in a group of their own, what becomes
            of them. They have splits of their own, `their_splits`.
    """

    def __init__(
        self,
        facts: Facts,
        members: pl.DataFrame,
        splits: pl.DataFrame,
        counted: int = 0,
        their_splits: pl.DataFrame | None = None,
    ) -> None:
        self.facts = facts
        self._codes: dict[str, list[str]] = {
            str(name): part["code"].to_list() for (name,), part in members.group_by("list", maintain_order=True)
        }
        self.labelled = len(facts.subjects) - counted
        self._split, self._groups = _places_of_splits(facts.subjects[: self.labelled], splits), 1
        if their_splits is not None:
            theirs = _places_of_splits(facts.subjects[self.labelled :], their_splits)
            self._split, self._groups = np.concatenate([self._split, theirs + len(COUNTED)]), 2
        self._held: dict[str, Bools] = {}

    def label(self, task: TaskConfig) -> tuple[pl.DataFrame, Attrition]:
        """`subject_id`, `prediction_time`, `boolean_value` in order, and who was left out."""
        return _Labelling(self, task).run()

    def holds(self, name: str) -> Bools:
        """Which rows (n,) belong to a list."""
        if name not in self._held:
            self._held[name] = self.facts.holds(self._codes.get(name, []))
        return self._held[name]

    def attrition(self, subject: I64) -> Attrition:
        """Of candidates, by the places of their subjects (n,), that nobody has left out yet."""
        return Attrition(self._split[subject], self._groups)


def _places_of_splits(subjects: I64, splits: pl.DataFrame) -> I64:
    """The place in COUNTED of each subject's split (n,)."""
    named = pl.DataFrame({"subject_id": subjects}).join(splits, on="subject_id", how="left", maintain_order="left")
    places = {name: place for place, name in enumerate(COUNTED)}
    found: I64 = named["split"].fill_null(NO_SPLIT).replace_strict(places, return_dtype=pl.Int64).to_numpy()
    return found


class _Labelling:
    """One task over one bucket."""

    def __init__(self, bucket: BucketLabels, task: TaskConfig) -> None:
        self.bucket, self.task, self.facts = bucket, task, bucket.facts
        self._instants: dict[tuple[str, bool], Instants] = {}

    def run(self) -> tuple[pl.DataFrame, Attrition]:
        found, attrition = self._candidates()
        self._leave_out(found, attrition)
        hit, died, seen = self._answers(found)
        task = self.task
        censored, competing = ~hit & ~died & ~seen, ~hit & died
        if task.censoring == "exclude":
            attrition.remove("censored", censored)
        if task.competing_death == "exclude":
            attrition.remove("competing_death", competing)
        value = hit | (competing if task.competing_death == "positive" else False)
        attrition.labelled(value)
        left = attrition.left & (found.subject < self.bucket.labelled)
        labels = pl.DataFrame(
            {
                "subject_id": self.facts.subjects[found.subject[left]],
                "prediction_time": pl.Series(found.moment[left]).cast(pl.Datetime("us")),
                "boolean_value": value[left],
            }
        )
        return labels.sort("subject_id", "prediction_time", "boolean_value"), attrition

    # What is known of subjects.

    @cached_property
    def _died(self) -> tuple[I64, I64, I64, I64]:
        """Of each subject (s,) the earliest and the latest moment of death, by the clock and then by its time; NEVER
        for the living."""
        rows = self.facts.rows.take(self.bucket.holds(DEATH))
        found = [np.full(len(self.facts.subjects), NEVER) for _ in range(4)]
        values = (rows.low(self.task.clock), rows.at(self.task.clock), rows.low("time"), rows.latest())
        for of_subject, moments in zip(found, values, strict=True):
            np.minimum.at(of_subject, rows.subject, moments)
        return found[0], found[1], found[2], found[3]

    @cached_property
    def _counted(self) -> Bools:
        """Which rows (n,) count: none whose time is after death."""
        rows = self.facts.rows
        if self.task.after_death == "keep":
            return np.ones(len(rows), np.bool_)
        alive: Bools = rows.low("time") <= self._died[3][rows.subject]
        return alive

    def _when(self, name: str, *, outcome: bool = False) -> Instants:
        """The facts of a list; as an outcome, each from the earliest moment that it may have had."""
        if (name, outcome) not in self._instants:
            task = self.task
            rows = self.facts.rows.take(self.bucket.holds(name) & self._counted)
            low = None
            if outcome:
                low = rows.at(task.clock) if task.same_day == "after" else rows.low(task.clock)
                if task.prior_by == "either":
                    low = np.minimum(low, rows.low("time"))
            self._instants[name, outcome] = Instants.of(rows.subject, rows.at(task.clock), low)
        return self._instants[name, outcome]

    def _stays(self, kind: str) -> Stays:
        start, end = STAYS[kind]
        return stays_of(self.facts.rows, self.bucket.holds(start), self.bucket.holds(end), self.task.clock)

    # Candidates.

    def _candidates(self) -> tuple[Candidates, Attrition]:
        index = self.task.index
        of_events = self._first if index.which == "first" else self._each
        found, attrition = (self._of_stays if index.stay is not None else of_events)(index)
        return found.with_horizon(self.task.horizon_days), attrition

    def _moments(self, events: Bools) -> tuple[I64, I64]:
        """Subject and moment (m,) of some events (n,), each moment once."""
        rows = self.facts.rows.take(events)
        once = np.unique(np.stack([rows.subject, rows.at(self.task.clock)]), axis=1)
        return once[0], once[1]

    def _met(self, requirement: Requirement, subject: I64, moment: I64) -> Bools:
        """Whether what a requirement asks for was known by a moment (q,)."""
        facts = self._when(requirement.codes)
        latest = facts.latest(subject, moment)
        days = requirement.within_days
        floor = np.full(len(moment), NO_TIME + 1) if days is None else shifted(moment, -days)
        met: Bools = (latest != NO_TIME) & (latest >= floor)
        if requirement.least == 2:
            met &= latest - np.minimum(facts.since(subject, floor), latest) >= requirement.apart_days * DAY
        return met

    def _all_met(self, index: Index, subject: I64, moment: I64) -> Bools:
        met = np.ones(len(subject), np.bool_)
        for requirement in index.requires:
            met &= self._met(requirement, subject, moment)
        return met

    def _first_moments(self, index: Index, events: Bools) -> I64:
        """Of each subject (s,) the first of some events (n,), or the first of those that qualify; NEVER without one."""
        subject, moment = self._moments(events)
        first = np.full(len(self.facts.subjects), NEVER)
        np.minimum.at(first, subject, moment)
        if index.first_of == "qualifying":
            met = self._all_met(index, subject, moment)
            qualifying = np.full(len(first), NEVER)
            np.minimum.at(qualifying, subject[met], moment[met])
            first = np.where(qualifying == NEVER, first, qualifying)
        return first

    def _first(self, index: Index) -> tuple[Candidates, Attrition]:
        """Every subject, at the first index event."""
        assert index.event is not None
        events = self.bucket.holds(index.event)
        first = self._first_moments(index, events)
        if index.orders is not None:
            given = self._first_moments(index, events & ~self.bucket.holds(index.orders))
            first = np.where(given <= shifted(first, index.order_days), given, first)
        everyone = np.arange(len(first))
        attrition = self.bucket.attrition(everyone)
        for requirement in index.requires:
            known = self._when(requirement.codes).by(everyone, np.full(len(everyone), NEVER))
            attrition.remove(f"no_{bare(requirement.codes)}", ~known)
        attrition.remove(f"no_{bare(index.event)}", first == NEVER)
        self._require(index, everyone, first, attrition)
        return Candidates.of(everyone, first), attrition

    def _each(self, index: Index) -> tuple[Candidates, Attrition]:
        """Every index event."""
        assert index.event is not None
        subject, moment = self._moments(self.bucket.holds(index.event))
        attrition = self.bucket.attrition(subject)
        self._require(index, subject, moment, attrition)
        return Candidates.of(subject, moment), attrition

    def _require(self, index: Index, subject: I64, moment: I64, attrition: Attrition) -> None:
        for requirement in index.requires:
            days = requirement.within_days
            when = "by_then" if days is None else f"within_{days}_days"
            attrition.remove(f"{bare(requirement.codes)}_not_{when}", ~self._met(requirement, subject, moment))

    def _of_stays(self, index: Index) -> tuple[Candidates, Attrition]:
        """Every stay of a kind, at its start or its end."""
        assert index.stay is not None
        stays = self._stays(index.stay)
        attrition = self.bucket.attrition(stays.subject)
        attrition.remove("bad_order", stays.bad_order)
        attrition.remove("inside_another_stay", stays.inside)
        subject, start, end = stays.subject, stays.start, stays.end
        never = np.full(len(stays), NEVER)
        if index.at == "start":
            before = np.where(end == NEVER, stays.next_start(), NEVER)
            return Candidates(subject, start, start, end, before, end != NEVER), attrition
        attrition.remove("no_end", end == NEVER)
        if index.within is None:
            return Candidates(subject, end, start, never, never, np.zeros(len(stays), np.bool_)), attrition
        outer = self._stays(index.within)
        place = outer.around(subject, end)
        attrition.remove(f"{index.within}_stay_over", place < 0)
        if index.at == "first_end":
            # A stay inside another one has an end of its own, which is none of the whole stay.
            whole = ~(stays.bad_order | stays.inside)
            attrition.remove("not_the_first", ~self._first_of(np.where(whole, place, -1), end))
        if not len(outer):
            return Candidates(subject, end, start, never, never, np.zeros(len(stays), np.bool_)), attrition
        inside = np.maximum(place, 0)
        stop = outer.end[inside]
        before = np.where(stop == NEVER, outer.next_start()[inside], NEVER)
        return Candidates(subject, end, outer.start[inside], stop, before, stop != NEVER), attrition

    def _first_of(self, place: I64, end: I64) -> Bools:
        """Which (n,) end first of those that lie in the same stay."""
        earliest = np.full(int(place.max(initial=-1)) + 2, NEVER)
        np.minimum.at(earliest, place, end)
        first: Bools = end == earliest[place]
        return first

    # Rules.

    def _leave_out(self, found: Candidates, attrition: Attrition) -> None:
        index, subject, moment = self.task.index, found.subject, found.moment
        attrition.remove("not_alive", self._died[1][subject] <= moment)
        if index.washin_days:
            attrition.remove("washin", moment - self.facts.first[subject] < index.washin_days * DAY)
        if index.min_age is not None:
            of_age = self._of_age(index.min_age)[subject]
            attrition.remove("age_unknown", of_age == NEVER)
            attrition.remove("under_age", moment < of_age)
        for outcome in self.task.outcomes:
            if outcome.codes != DEATH and outcome.prior == "exclude":
                attrition.remove(f"prior_{bare(outcome.codes)}", self._prior(outcome, found))
                if outcome.grace_days:
                    attrition.remove(f"{bare(outcome.codes)}_in_grace", self._in_grace(outcome, found))
        for name in self.task.exclude:
            attrition.remove(f"has_{bare(name)}", self._when(name).by(subject, moment))

    def _of_age(self, years: int) -> I64:
        """When each subject (s,) reaches an age, by the calendar; NEVER where the birth is not known."""
        rows = self.facts.rows.take(self.bucket.holds(BIRTH))
        born = np.full(len(self.facts.subjects), NEVER)
        np.minimum.at(born, rows.subject, rows.time)
        known = born != NEVER
        # Of age from the birthday's first moment on, whatever hour the birth has.
        born[known] -= born[known] % DAY
        moments = pl.Series(born[known]).cast(pl.Datetime("us")).dt.offset_by(f"{years}y")
        born[known] = moments.to_physical().to_numpy()
        return born

    def _prior(self, outcome: Outcome, found: Candidates) -> Bools:
        """Whose outcome (n,) was there by the prediction time: ever, or in the candidate's stay.

        Of an outcome that begins a stay: who is in such a stay.
        """
        kinds = [kind for kind, (start, _) in STAYS.items() if start == outcome.codes]
        if kinds and self.task.index.stay is not None:
            return self._stays(kinds[0]).around(found.subject, found.moment) >= 0
        return self._when(outcome.codes, outcome=True).between(found.subject, found.since, found.moment)

    def _in_grace(self, outcome: Outcome, found: Candidates) -> Bools:
        return self._when(outcome.codes, outcome=True).by(
            found.subject, shifted(found.moment, outcome.grace_days)
        ) & ~self._prior(outcome, found)

    # Answers.

    def _answers(self, found: Candidates) -> tuple[Bools, Bools, Bools]:
        """Who has the outcome in the window (n,), who dies in it (n,), who is observed up to its end (n,)."""
        low, at, low_time, latest_time = (moments[found.subject] for moments in self._died)
        by_day = self.task.index.stay is not None and self.task.date_deaths == "day"
        died = (at > found.moment) & ((low if by_day else at) <= found.stop) & (at < found.before) & (at != NEVER)
        # A death that became known behind the window is no outcome by the clock, and nobody was observed alive up to
        # its end.
        dead = ((low_time if by_day else latest_time) <= found.stop) & (latest_time != NEVER)
        hit = np.zeros(len(found.subject), np.bool_)
        for outcome in self.task.outcomes:
            hit |= died if outcome.codes == DEATH else self._hit(outcome, found)
        return hit, died, self._seen(found) & ~dead

    def _hit(self, outcome: Outcome, found: Candidates) -> Bools:
        if outcome.from_days:
            # By when it counts: a date that is so many days later by the calendar is late enough.
            from_then = shifted(found.moment, outcome.from_days)
            at = self._when(outcome.codes).since(found.subject, from_then)
        else:
            at = self._when(outcome.codes, outcome=True).after(found.subject, found.moment)
        hit: Bools = (at <= found.stop) & (at < found.before) & (at != NEVER)
        if outcome.prior == "void":
            hit &= ~self._prior(outcome, found)
            if outcome.grace_days:
                hit &= ~self._in_grace(outcome, found)
        return hit

    def _seen(self, found: Candidates) -> Bools:
        follow_up, facts = self.task.follow_up, self.facts
        by_time = follow_up.clock == "time" or self.task.clock == "time"
        last = (facts.last if by_time else facts.last_known)[found.subject]
        seen: Bools = found.over | ((last > found.stop) & (found.stop != NEVER))
        if follow_up.register_days is not None:
            discharged = self._when("hospital_end").latest(found.subject, np.full(len(found.subject), NEVER))
            seen |= (discharged != NO_TIME) & (shifted(discharged, follow_up.register_days) >= found.stop)
        return seen


def empty_labels() -> pl.DataFrame:
    """No labels."""
    return pl.DataFrame(
        schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "boolean_value": pl.Boolean}
    )


def lists_of(tasks: Mapping[str, TaskConfig]) -> list[str]:
    """Every list that some tasks read, in order of their names."""
    return sorted({name for task in tasks.values() for name in task.lists()})
