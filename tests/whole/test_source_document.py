"""The JSON schema of a source's YAML, and docs/sources.md: their statements are true."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import polars as pl
import pytest
import yaml

from extractors.source import SOURCES, Source, load_source
from flows.commands.check_source import json_schema
from flows.runs.run import Run
from pipelines.config import RunConfig, load_config
from pipelines.engine.local import LocalEngine
from tests.support.raw.clinic import EXAMPLES, ROOT, SPOILT, Clinic, timeloom
from warehouse.layout import Layout

DOCUMENT = ROOT / "docs" / "sources.md"


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


# The JSON schema.


def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "docs" / "source.schema.json").read_text(encoding="utf-8"))
    return loaded


def test_the_schema_file_is_the_models() -> None:
    """If not: timeloom check-source --schema > docs/source.schema.json"""
    assert (ROOT / "docs" / "source.schema.json").read_text(encoding="utf-8") == json_schema()
    assert timeloom("--schema").stdout == json_schema()


def test_every_key_is_explained() -> None:
    whole = schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    for model in [whole, *whole["$defs"].values()]:
        silent = [name for name, definition in model["properties"].items() if not definition.get("description")]
        assert silent == [], model["title"]


def documented_sources() -> list[Path]:
    return [*SOURCES.glob("*.yaml"), *EXAMPLES.glob("*-source.yaml")]


@pytest.mark.parametrize("path", documented_sources(), ids=lambda path: path.stem)
def test_sources_keep_the_schema(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), schema())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("subject: patient_no", "subjekt: patient_no"),
        ("kind: visit_end", "kind: visit_over"),
        ("otherwise: lag", "otherwise: never"),
        ("value: result", "value: [result]"),
        ("role: reference", "role: dictionary"),
        ("key: test, ", ""),
    ],
)
def test_the_schema_and_the_model_refuse_the_same(clinic: Clinic, old: str, new: str) -> None:
    clinic.yaml_with(old, new)
    raw = yaml.safe_load(clinic.yaml.read_text(encoding="utf-8"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, schema())
    with pytest.raises(ValueError, match="validation error"):
        Source.model_validate(raw)


# The document.


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), flags=re.M | re.S)


def bare(text: str) -> list[str]:
    """Lines without the padding of a terminal."""
    return [line.rstrip() for line in text.strip().splitlines()]


def test_the_documents_example_is_the_file() -> None:
    shown, *_ = blocks("yaml")
    assert shown == (EXAMPLES / "clinic-source.yaml").read_text(encoding="utf-8")


def test_the_documents_configurations_are_valid() -> None:
    _, *shown = blocks("yaml")
    assert shown
    for text in shown:
        config = RunConfig.model_validate(yaml.safe_load(text))
        for source in config.sources:
            load_source(source.source).read_as(source.reading)


def test_the_documents_output_is_the_commands() -> None:
    (command,) = [
        splitline
        for block in blocks("bash")
        for splitline in block.splitlines()
        if "check-source docs/examples" in splitline
    ]
    done = timeloom(*command.split()[2:])
    assert bare(blocks("text")[0]) == bare(done.stdout)


def test_the_documents_first_draft_gives_these_lines(clinic: Clinic) -> None:
    clinic.yaml_with("columns: {left: left}", "columns: {left: arrived}")
    clinic.yaml_with(
        '{column: first_day, formats: "%d.%m.%Y"}', '{column: first_day, formats: ["%d.%m.%Y %H:%M", "%d.%m.%Y"]}'
    )
    clinic.yaml_with("        unit: unit\n", "")
    done = timeloom(clinic.yaml, clinic.folder)
    lines = done.stdout.splitlines()
    assert bare(blocks("text")[1]) == lines[lines.index("suspicious: 3") :]


def test_the_documents_raw_rows_are_the_clinics(clinic: Clinic) -> None:
    shown = [line for block in blocks("csv") for line in block.splitlines() if line and not line.startswith("#")]
    known = {line for path in clinic.folder.glob("*.csv") for line in path.read_text(encoding="utf-8").splitlines()}
    assert len(shown) > 10 and set(shown) <= known


def test_every_check_and_reason_is_in_the_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in SPOILT.values() if f"`{name}`" not in text] == []
    from extractors.events.converted import AVAILABILITY, REASONS
    from extractors.events.values import FLAGS
    from pipelines.aligning.conflicts import CONFLICTS

    assert [name for name in (*REASONS, *CONFLICTS, *AVAILABILITY[:3], *FLAGS) if f"`{name}`" not in text] == []


def test_every_key_is_in_the_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    whole = schema()
    keys = {name for model in [whole, *whole["$defs"].values()] for name in model["properties"]}
    assert sorted(name for name in keys if f"`{name}`" not in text) == []


def test_the_documents_events_are_the_runs(tmp_path: Path) -> None:
    """The clinic from its configuration to a release, and the parts of the release that the document shows."""
    config = load_config(EXAMPLES / "clinic.yaml")
    with Run(config, EXAMPLES, Layout(tmp_path / "warehouse"), LocalEngine(1)) as run:
        for name, step in run.steps:
            run.carry_out(name, step)
        outcome = run.outcome()
    assert outcome.published and outcome.exit_code == 0
    release = tmp_path / "warehouse" / "current"
    events = pl.read_parquet(str(release / "data" / "*.parquet"))
    stay = events.filter(pl.col("time") == datetime(2024, 6, 9, 15, 35))["visit_id"].item()
    shown = ["time", "available_time", "availability", "code", "numeric_value", "text_value", "value_flag", "unit"]
    rows = events.filter(pl.col("visit_id") == stay).select(shown).rows()
    lines = [f"| {' | '.join(map(cell, row))} |" for row in rows]
    document = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| 2024-")]
    assert document == lines, "\n".join(lines)
    described = dict(pl.read_parquet(release / "metadata" / "codes.parquet").select("code", "parent_codes").rows())
    assert described["ATC/J01CR02"] == ["ATC/J01CR", "CLINIC_LIST/ANTIBIOTIC_TO_BE_APPROVED"]
    # The hour that comes twice in autumn: 02:30 of summer time, and 03:30 and 04:00 of winter time.
    night = events.filter(pl.col("time") == datetime(2024, 10, 27, 2, 30)).sort("available_time")
    assert night["available_time"].to_list() == [datetime(2024, 10, 27, 3, 30), datetime(2024, 10, 27, 4, 0)]


def cell(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
