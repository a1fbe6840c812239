"""The documents' commands and examples do what they say."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from extractors.source import Source, load_source
from flows.runs.run import Run
from pipelines.config import parse_config
from pipelines.engine.local import LocalEngine
from warehouse.layout import Layout
from warehouse.publish import current_release

ROOT = Path(__file__).parents[2]
DOCS = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a language in a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def commands(document: str) -> list[list[str]]:
    """The `timeloom` commands of a document's bash blocks."""
    lines = [line for block in blocks(document, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("timeloom ")]


def timeloom(arguments: list[str], cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture
def place(tmp_path: Path, demo_folder: Path) -> Path:
    """A folder as a newcomer has it after `make demo`."""
    (tmp_path / "timeloom-demo").symlink_to(demo_folder)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    return tmp_path


def test_readme_commands_about_the_demo(place: Path) -> None:
    shown = [words for words in commands("README.md") if words[1] in ("status", "verify", "report")]
    assert len(shown) == 3
    for words in shown:
        done = timeloom(words[1:], place)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def test_readme_index_command_finds_the_planted_faults(place: Path) -> None:
    (shown,) = (words for words in commands("README.md") if words[1] == "index")
    done = timeloom([*shown[1:], "--json"], place)
    assert done.returncode == 2, done.stderr
    verdicts = {(group["modality"], group["verdict"]) for group in json.loads(done.stdout)["groups"]}
    assert {("ct", "ok"), ("wsi", "ok"), ("ct", "failed_missing_slice")} <= verdicts


def test_readme_run_command_on_real_data(place: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIMELOOM_DATA", str(real_data))
    trial = next(words for words in commands("README.md") if words[1] == "run" and "--limit" in words)
    done = timeloom([*trial[1:], "--direct"], place)
    assert done.returncode == 0, done.stderr
    release = current_release(Layout(place / "trial"))
    assert release is not None
    assert pl.read_parquet(release.subject_splits).height == int(trial[trial.index("--limit") + 1])


def test_commands_about_releases_over_time_run_on_the_demo(place: Path) -> None:
    before = sorted(path for path in (place / "timeloom-demo").rglob("*"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "set -euo pipefail\n" + "\n".join(blocks("docs/releases.md", "bash"))
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nothing to collect; 1 release stays" in done.stdout
    assert "made by stage align" in done.stdout
    assert "nothing that it hangs on has changed" in done.stdout
    assert "the data of both is the same" in done.stdout
    (code,) = blocks("docs/releases.md", "python")
    subprocess.run([sys.executable, "-c", code], cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert sorted(path for path in (place / "timeloom-demo").rglob("*")) == before


def test_a_release_goes_to_an_object_store_and_back_and_is_whole(tmp_path: Path, demo_release: Path) -> None:
    (tmp_path / "timeloom-demo").mkdir()
    (tmp_path / "timeloom-demo" / "warehouse").symlink_to(demo_release)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "set -euo pipefail\n" + "\n".join(blocks("docs/object-stores.md", "bash"))
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "names it as current" in done.stdout
    assert "FAIL" not in done.stdout
    (code,) = blocks("docs/object-stores.md", "python")
    code += "\nassert len(batch.input_ids) == 16"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


def test_readme_commands_and_options_exist() -> None:
    for words in commands("README.md"):
        helped = timeloom([words[1], "--help"], ROOT)
        assert helped.returncode == 0, words
        for option in (word for word in words if word.startswith("--")):
            assert option in helped.stdout, (words, option)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git repository")
def test_what_the_documents_commands_write_is_ignored_by_git() -> None:
    lines = [line for page in ("README.md", *DOCS) for line in (ROOT / page).read_text("utf-8").splitlines()]
    written = {found[1] for line in lines if (found := re.match(r"(?:    )?timeloom simulate (\S+)", line))}
    written |= {found[1] for line in lines for found in re.finditer(r"^timeloom .*--(?:root|out) (\S+)", line)}
    # Beside the root that is served lies the home of its Prefect server.
    written |= {f"{found[1]}.prefect" for line in lines if (found := re.match(r"timeloom serve .*--root (\S+)", line))}
    written |= {found[1] for line in lines if (found := re.match(r"meds_reader_convert \S+ (\S+)", line))}
    # Beside what `meds` writes lies the root that it works in; benchmarks have a folder of their own.
    written |= {f"{name}.root" for name in written if name.endswith("-meds")} | {"imaging-benchmark"}
    assert len(written) > 6
    # A folder's pattern matches what is in the folder.
    asked = sorted(f"{name}/file" for name in written)
    done = subprocess.run(["git", "check-ignore", *asked], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == asked


def test_readme_code_for_modelers_runs(place: Path) -> None:
    (code,) = blocks("README.md", "python")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", ["README.md", "docs/sources.md"])
def test_documented_sources_are_valid(document: str, tmp_path: Path) -> None:
    text, *_ = blocks(document, "yaml")
    (tmp_path / "source.yaml").write_text(text, encoding="utf-8")
    assert isinstance(load_source("source.yaml", tmp_path), Source)


def test_a_misspelt_key_in_a_documented_source_is_refused(tmp_path: Path) -> None:
    text, *_ = blocks("README.md", "yaml")
    (tmp_path / "source.yaml").write_text(text.replace("available:", "availble:"), encoding="utf-8")
    with pytest.raises(Exception, match="availble"):
        load_source("source.yaml", tmp_path)


def test_documented_configuration_is_valid() -> None:
    (text,) = blocks("docs/configuration.md", "yaml")
    config = parse_config(yaml.safe_load(text), ROOT, "configuration.md")
    assert set(config.modalities) == {"ct", "cxr", "ecg", "note", "wsi"}


def test_readme_source_runs_on_a_table(tmp_path: Path) -> None:
    """The README's own example, from YAML to a release."""
    text, *_ = blocks("README.md", "yaml")
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    tables = tmp_path / "tables"
    tables.mkdir()
    days = [f"2024-01-{1 + number % 28:02d}" for number in range(400)]
    rows = [
        f"P{number % 40},V{number},718-7,{day} 08:00:00,{day} 09:30:00,{10 + number / 10},g/dL"
        for number, day in enumerate(days)
    ]
    header = "patient_id,encounter_id,loinc,collected_at,resulted_at,result,unit"
    (tables / "labs.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    config = parse_config({"sources": [{"source": "my.yaml", "path": "tables"}], "buckets": 4}, tmp_path, "my-hospital")
    with Run(config, tmp_path, Layout(tmp_path / "warehouse"), LocalEngine(1)) as run:
        for name, step in run.steps:
            run.carry_out(name, step)
        outcome = run.outcome()
    assert outcome.published
    events = pl.read_parquet(str(tmp_path / "warehouse/current/data/*.parquet"))
    assert events.height == 400
    assert set(events["code"]) == {"LOINC/718-7"}
    lag = (events["available_time"] - events["time"]).dt.total_minutes().unique().to_list()
    assert lag == [90]
