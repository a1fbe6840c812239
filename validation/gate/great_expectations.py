"""Runs Great Expectations, and is the only module that knows it: aggregates go in, booleans and pages come out."""

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from validation.areas.area import Area, Expectation
from validation.gate.lean_import import great_expectations, nothing_collected

DISTRIBUTION = "great-expectations"


@dataclass(frozen=True)
class Answer:
    """What Great Expectations says of an area.

    Attributes:
        success: of each expectation, by its name. One that cannot be evaluated has failed; one of which nothing is said
            is absent.
        suite, result: its objects, which pages are printed of.
    """

    success: Mapping[str, bool]
    suite: Any
    result: Any


def _build(area: Area, expectation: Expectation) -> Any:
    """The Great Expectations object of one expectation."""
    gxe: Any = importlib.import_module("great_expectations.expectations")
    common: dict[str, Any] = {
        "severity": expectation.severity,
        "description": f"{expectation.severity}: {expectation.sentence}",
        "meta": {"name": area.name_of(expectation), "severity": expectation.severity, "sentence": expectation.sentence},
    }
    low, high = expectation.low, expectation.high
    if expectation.column == "*":
        return gxe.ExpectTableRowCountToBeBetween(min_value=low, max_value=high, **common)
    if expectation.pattern:
        return gxe.ExpectColumnValuesToMatchRegex(column=expectation.column, regex=expectation.pattern, **common)
    return gxe.ExpectColumnValuesToBeBetween(column=expectation.column, min_value=low, max_value=high, **common)


@nothing_collected()
def run_suites(frames: Mapping[str, pl.DataFrame], areas: Sequence[Area]) -> dict[str, Answer]:
    """Runs a suite per area; gives the answers by the areas' names.

    Args:
        frames: the frame of each area, by its name.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # else Great Expectations reports its use to its makers
    gx = great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    # One for all: with each that is added the context writes its whole configuration down.
    asset = context.data_sources.add_pandas("release_profile").add_dataframe_asset("areas")
    definition = asset.add_batch_definition_whole_dataframe("area")
    run = gx.RunIdentifier(run_time=datetime.now(UTC))
    answers = {}
    for area in areas:
        pandas = frames[area.name].to_pandas(use_pyarrow_extension_array=True)
        suite = gx.ExpectationSuite(name=area.name, expectations=[_build(area, each) for each in area.expectations])
        # A batch alone: checkpoints and their stores take as long again, for what nobody looks up.
        batch = definition.get_batch(batch_parameters={"dataframe": pandas})
        result = batch.validate(suite, result_format="BOOLEAN_ONLY")
        result.meta["run_id"] = run
        answers[area.name] = Answer(
            {each.expectation_config.meta["name"]: bool(each.success) and not _raised(each) for each in result.results},
            suite,
            result,
        )
    return answers


def _raised(result: Any) -> bool:
    """Whether an expectation could not be evaluated: exception_info is flat, or one entry per metric."""
    info = result.exception_info or {}
    nested = [entry for entry in info.values() if isinstance(entry, dict)]
    return any(entry.get("raised_exception") for entry in (info, *nested))


class Printer:
    """Prints pages of Data Docs; its templates are compiled once."""

    def __init__(self) -> None:
        renderers: Any = importlib.import_module("great_expectations.render.renderer")
        self._expectations = renderers.ExpectationSuitePageRenderer()
        self._results = renderers.ValidationResultsPageRenderer()
        self._view = importlib.import_module("great_expectations.render.view").DefaultJinjaPageView()

    @nothing_collected()
    def pages(self, answer: Answer) -> tuple[str, str]:
        """What was found of an area, and what is expected, as Great Expectations prints it: HTML."""
        contents = self._results.render(answer.result), self._expectations.render(answer.suite)
        found, expected = (self._view.render(content, show_how_to_buttons=False) for content in contents)
        return found, expected
