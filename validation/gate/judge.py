"""The gate: what is measured of a release is held to the expectations of every area.

Where a critical expectation fails, nothing is published.

Great Expectations sees aggregates only (the frames of Measurements) and answers with booleans only, so neither its
results nor its Data Docs can carry a value of a patient.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipelines.engine.context import Standing
from validation.areas import registry
from validation.areas.area import Expectation, Kind, Severity
from validation.gate.data_docs import write_docs
from validation.gate.great_expectations import run_suites
from validation.measurements import Measurements


@dataclass(frozen=True)
class Outcome:
    """What the gate says of an expectation.

    Attributes:
        suite: the name of its area.
        observed: the value of its frame that is furthest from what is expected; None for text, or without a value.
        rule: what `observed` is held to, in words.
        said, remedy: of a failed one, what the run says and advises.
    """

    suite: str
    name: str
    sentence: str
    severity: Severity
    success: bool
    kind: Kind
    observed: float | None
    rule: str
    said: str = ""
    remedy: str = ""


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
    # a difference may lie on either side of zero: take the one that is furthest from it
    return float(values.gather([int(values.abs().arg_max() or 0)]).item())


def _said(expectation: Expectation, frame: pl.DataFrame, success: bool) -> dict[str, str]:
    if success:
        return {}
    broken = expectation.broken(frame) if expectation.column in frame.columns and expectation.words else frame.clear()
    words, remedy = expectation.words, expectation.remedy
    return {
        "said": words(broken) if words and len(broken) else expectation.sentence.rstrip("."),
        "remedy": remedy(broken) if remedy and len(broken) else "",
    }


def judge(measurements: Measurements, docs_dir: Path | None, before: Standing | None = None) -> Judgement:
    """Holds measurements to the expectations of every area.

    Args:
        docs_dir: where Data Docs are written (quality/data_docs); None writes none.
        before: the release that this one follows, which may have pages of Data Docs that say the same.
    """
    answers = run_suites(measurements.areas, registry.AREAS)
    if docs_dir is not None:
        shutil.rmtree(docs_dir, ignore_errors=True)  # pages of a run that was killed
        docs_dir.mkdir(parents=True)
        write_docs(docs_dir, registry.AREAS, answers, before)
    success = {name: met for answer in answers.values() for name, met in answer.success.items()}
    results = [
        Outcome(
            suite=area.name,
            name=area.name_of(expectation),
            sentence=expectation.sentence,
            severity=expectation.severity,
            success=success.get(area.name_of(expectation), False),
            kind=expectation.kind,
            observed=_observed(expectation, measurements.areas[area.name]),
            rule=expectation.rule,
            **_said(expectation, measurements.areas[area.name], success.get(area.name_of(expectation), False)),
        )
        for area in registry.AREAS
        for expectation in area.expectations
    ]
    passed = all(result.success for result in results if result.severity == "critical")
    return Judgement(passed=passed, results=results)
