"""The gate: Great Expectations suites over the release profile. A failing critical expectation publishes nothing.

Great Expectations sees aggregates only (the frames of Measurements) and answers with booleans only, so neither its
results nor its Data Docs can carry a value of a patient.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from validation.gate.expectation import Expectation, Kind, Severity
from validation.gate.expectations import EXPECTATIONS
from validation.gate.great_expectations import make_offline, run_suites
from validation.measure.release import AREAS, Measurements


@dataclass(frozen=True)
class Outcome:
    """What became of one expectation.

    Attributes:
        observed: the value of its frame that is furthest from what is expected; None for text, or without a value.
        rule: what `observed` is held to, in words.
    """

    suite: str
    name: str
    sentence: str
    severity: Severity
    success: bool
    kind: Kind
    observed: float | None
    rule: str


@dataclass(frozen=True)
class Judgement:
    """The gate's answer: `passed` unless a critical expectation failed or could not be evaluated."""

    passed: bool
    results: list[Outcome]

    @property
    def failures(self) -> list[Outcome]:
        """Failed expectations, critical ones first."""
        return sorted((result for result in self.results if not result.success), key=lambda result: result.severity)


def _observed(expectation: Expectation, frame: pl.DataFrame) -> float | None:
    if expectation.column == "*":
        return float(frame.height)
    if expectation.column not in frame.columns or expectation.kind == "text":
        return None
    values = frame[expectation.column].cast(pl.Float64).drop_nulls()
    if values.is_empty():
        return None
    if expectation.high is None:
        return float(str(values.min()))
    # a difference may lie on either side of zero: the one furthest from it
    return float(values.gather([int(values.abs().arg_max() or 0)]).item())


def _rule(expectation: Expectation) -> str:
    if expectation.pattern:
        return "a known kind of verdict"
    low, high = expectation.low, expectation.high
    if low == high:
        return f"{high:g}"
    return f"at least {low:g}" if high is None else f"at most {high:g}"


def judge(profile: Measurements, docs_dir: Path | None) -> Judgement:
    """Holds a profile to all suites.

    Args:
        docs_dir: where Data Docs are written (quality/data_docs); None writes none.
    """
    if docs_dir is not None:
        shutil.rmtree(docs_dir, ignore_errors=True)  # pages of a run that was killed
        docs_dir.mkdir(parents=True)
    frames = {area: getattr(profile, area) for area in AREAS}
    success = run_suites(frames, EXPECTATIONS, docs_dir)
    if docs_dir is not None:
        make_offline(docs_dir)
    results = [
        Outcome(
            suite=expectation.suite,
            name=expectation.name,
            sentence=expectation.sentence,
            severity=expectation.severity,
            success=success.get(expectation.name, False),
            kind=expectation.kind,
            observed=_observed(expectation, getattr(profile, expectation.suite)),
            rule=_rule(expectation),
        )
        for expectation in EXPECTATIONS
    ]
    passed = all(result.success for result in results if result.severity == "critical")
    return Judgement(passed=passed, results=results)
