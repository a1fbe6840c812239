"""What Prefect's server is told where a flow beside the nightly one fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from prefect import Flow

from flows import upkeep
from flows.nightly import StepFailedError
from warehouse.errors import TimeloomError

VALUE = "P000123, born 1950-02-01"
FLOWS: list[tuple[Flow[..., Any], str, dict[str, Any]]] = [
    (upkeep.verify, "verify_release", {"root": "warehouse"}),
    (upkeep.backfill, "make_again", {"config": "night.yaml", "release": "2026-01-01T00-00-00Z"}),
    (upkeep.gc, "read_kept", {"place": "warehouse"}),
]


def raising(error: Exception) -> Callable[..., NoReturn]:
    def call(*_: Any, **__: Any) -> NoReturn:
        raise error

    return call


@pytest.mark.parametrize(("flow", "step", "parameters"), FLOWS, ids=[flow.name for flow, *_ in FLOWS])
def test_a_value_in_an_exception_is_not_told(
    flow: Flow[..., Any], step: str, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(upkeep, step, raising(ValueError(VALUE)))
    with pytest.raises(StepFailedError) as failed:
        flow.fn(**parameters)
    remedy = f"run `timeloom {flow.name} --debug` on the worker's machine"
    assert str(failed.value) == f"ValueError in the flow {flow.name}; {remedy}"
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__
    monkeypatch.setattr(upkeep, step, raising(TimeloomError("the lineage is damaged", "repair it")))
    with pytest.raises(TimeloomError, match="the lineage is damaged; repair it"):
        flow.fn(**parameters)
