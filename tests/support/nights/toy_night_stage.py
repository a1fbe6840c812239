"""A toy stage of a night: how many events each bucket has. It is added by one line to the list of stages."""

from pathlib import Path
from typing import Any, TypedDict

import pyarrow.parquet as pq

from pipelines.engine.task import Result, Task, make_task
from pipelines.night import Night, Stage
from warehouse.files import write_json
from warehouse.layout import ReleaseLayout, bucket_name


class Params(TypedDict):
    """What a task is given."""

    bucket: int


def plan(night: Night) -> list[Task]:
    """One task per bucket."""
    events = night.report("align").hashes()
    return [
        make_task(
            STAGE,
            bucket_name(bucket),
            night.context.staging,
            settings=None,
            inputs=events[str(ReleaseLayout(Path()).events(bucket))],
            params=Params(bucket=bucket),
        )
        for bucket in range(night.config.buckets)
    ]


def run(params: Params, base: Path) -> Result:
    """Counts the events of one bucket."""
    rows = pq.read_metadata(ReleaseLayout(base).events(params["bucket"])).num_rows
    name = f"toys/{bucket_name(params['bucket'])}.json"
    write_json(base / name, {"events": rows})
    return Result({name: None}, {"events": rows})


def declared(night: Night) -> dict[str, Any]:
    """Nothing for the manifest."""
    return {}


STAGE = Stage(
    "toy",
    version=1,
    run="tests.support.nights.toy_night_stage:run",
    after=("align",),
    plan=plan,
    declare=declared,
)
