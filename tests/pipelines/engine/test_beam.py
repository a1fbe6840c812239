"""Beam's runners: what they say when they fail, and nothing of a patient in it."""

import json
from pathlib import Path

import pytest

from pipelines.engine.beam import BeamEngine, words_of
from pipelines.engine.task import StageFunction, make_task
from warehouse.errors import TimeloomError


@pytest.mark.whole
@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (BeamEngine("NoSuchRunner"), "NoSuchRunner failed: ValueError: Unexpected pipeline runner: NoSuchRunner"),
        (
            BeamEngine("nosuch.Runner"),
            "the Beam runner nosuch.Runner failed: ModuleNotFoundError: No module named 'nosuch'",
        ),
        (BeamEngine(options=["--no_such_option"]), "the Beam runner FnApiRunner has no option --no_such_option; mend"),
        (BeamEngine(options=["--runner_pool=x", "--direct_num_workers=many"]), "an option is wrong"),
        (BeamEngine("SparkRunner", options=["--spark_master_url=nowhere"]), "the Beam runner SparkRunner failed: "),
    ],
)
def test_a_runner_that_fails_says_why_in_its_own_words(tmp_path: Path, engine: BeamEngine, says: str) -> None:
    doe = tmp_path / "ANNA-DOE.txt"
    doe.touch()
    stage = StageFunction("toy", 1, "tests.support.nights.toy_stage:run")
    task = make_task(stage, "doe", tmp_path / "staging", settings="", inputs="", params={"input": str(doe)})
    with pytest.raises(TimeloomError) as caught:
        engine.map([task], lambda _: None)
    assert says in str(caught.value)
    assert "DOE" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_worker_of_beam_says_is_not_passed_on() -> None:
    elements = [json.dumps({"params": {"path": "/export/DOE/labs.csv"}})]
    for said in ("no /export/DOE/labs.csv", "x [while running 'Map(execute_parcel)']", ""):
        assert words_of(ValueError(said), elements) == "ValueError"
    assert words_of(RuntimeError("no job\nserver"), elements) == "RuntimeError: no job server"
