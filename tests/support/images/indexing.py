"""The stages that find images, alone: a tree becomes the items that a night would encode."""

from pathlib import Path
from typing import Any

import polars as pl

from embedders.inputs.registry import SPECS
from extractors.deid import load_key
from pipelines import group, index, scan
from pipelines.config import RunConfig
from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.local import LocalEngine
from pipelines.engine.task import Engine
from pipelines.night import Night, carry_out
from tests.support.modality_contract import RANDOM
from tests.support.raw.raw_tables import KEEP
from warehouse.layout import Layout

STAGES = (scan.STAGE, group.STAGE, index.STAGE)


def layout_of(work: Path) -> Layout:
    """Where `index_images` puts what it makes."""
    return Layout(work / "warehouse")


def index_images(
    work: Path,
    modality: str,
    settings: dict[str, Any],
    *,
    deid: dict[str, Any] | None = None,
    buckets: int = 7,
    engine: Engine | None = None,
    rehash: bool = False,
) -> tuple[pl.DataFrame, dict[str, StageReport]]:
    """The items that are found with a modality's settings, and what each stage did; what was known is used again."""
    config = RunConfig.model_validate(
        {
            "sources": [{"source": "simulated-hospital", "path": str(work)}],
            "deid": deid or KEEP,
            "buckets": buckets,
            "modalities": {modality: {**settings, "encoder": {"name": RANDOM[SPECS[modality].form], "width": 1024}}},
        }
    )
    layout = layout_of(work)
    load_key(config.deid, layout.private, create=True)
    with engine or LocalEngine(1) as running:
        context = RunContext(running, work / "work", None, None)
        fingerprints = Fingerprints(layout.private, rehash=rehash)
        night = Night(config, work, layout, context, fingerprints)
        try:
            for stage in STAGES:
                carry_out(stage, night, STAGES)
        finally:
            fingerprints.save()
    (segment,) = night.reports["index"].hashes()
    return pl.read_parquet(layout.segments / segment), night.reports
