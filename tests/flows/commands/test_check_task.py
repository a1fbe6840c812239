"""`timeloom check-task`: what a task would label in the current release, and that it writes nothing."""

import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from extractors.simulate import simulate
from flows.cli import main
from tests.support.nights.site import Site
from warehouse.files import sha256_file

# In `make test` alone: a whole night.
pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("check")
    simulate(folder / "hospital", subjects=40, seed=3, imaging_share=0.0, modalities=["ct"], task_cases=True)
    (folder / "hospital" / "tables").rename(folder / "tables")
    found = Site(folder, {"buckets": 2, "limits": {"unparsable_times": 0.05}})
    found.night()
    return found


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["timeloom", "check-task", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_it_says_what_each_rule_leaves_out_and_writes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = site.layout.root
    before = {path: sha256_file(path) for path in root.rglob("*") if path.is_file()}
    code, out, _ = run(monkeypatch, capsys, "mortality", "--root", str(root), "--json")
    assert {path: sha256_file(path) for path in root.rglob("*") if path.is_file()} == before
    said: dict[str, Any] = json.loads(out)
    assert (code, said["exit_code"], said["id"], said["version"]) == (0, 0, "onc.mortality.v1", 1)
    counted = {row["rule"]: row["patients"] for row in said["attrition"]}
    table = pl.read_parquet(str(root / "current" / "quality" / "attrition.parquet"))
    kept = dict(table.filter(pl.col("task") == "mortality").select("rule", "patients").iter_rows())
    assert counted == kept
    assert said["codes"]["treatment"]["for"] == "index event"
    assert said["codes"]["treatment"]["codes_of_the_release"] > 5


def test_a_person_reads_the_same(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ours.yaml").write_text(
        "id: ours.seizure.v3\ntitle: Seizure\nproposal: A test's own.\nindex: {event: treatment}\nhorizon_days: 9\n"
        "outcomes: [{codes: seizure}]\ncodes: {seizure: {any: ['SNOMED/91175000', 'ICD10/G40*']}}\n"
    )
    code, out, _ = run(monkeypatch, capsys, str(tmp_path / "ours.yaml"), "--root", str(site.layout.root))
    assert code == 2
    assert "ours.seizure.v3" in out and "A proposal: A test's own." in out
    joined = " ".join(out.split())
    assert "no labels: it wants SNOMED or ICD10 codes for seizure (outcome)" in joined
    assert "ICD10 is no code system of this release, did you mean ICD10CM?" in joined


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "there is no task nothing"),
        ([], "check-task needs a task"),
        (["mortality", "--root", "nowhere"], "has no release yet"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(monkeypatch, capsys, *words)
    assert (code, said in " ".join(err.split())) == (1, True)


def test_small_cells_are_hidden_where_patients_are_real(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.commands import check_task

    monkeypatch.setattr(check_task, "OPEN_MODE", "none")
    code, out, _ = run(monkeypatch, capsys, "mortality", "--root", str(site.layout.root), "--json")
    rows = json.loads(out)["attrition"]
    assert code == 0 and all(row["patients"] is None or not 0 < row["patients"] <= 10 for row in rows)
    assert sum(row["patients"] is None for row in rows) >= 2, "one alone could be worked out"
