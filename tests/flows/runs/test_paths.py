"""Where a run may read and write: said before anything is read, and before a server starts."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import flows.prefect_server
from flows import cli
from flows.runs.convert import convert
from flows.runs.paths import configured
from flows.runs.settings import RunSettings
from warehouse.errors import TimeloomError

SOURCE = """
name: s
subject: pid
tables:
  t: {events: [{code: X}]}
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A configuration of one table, a tree of CT and a file of merges."""
    (tmp_path / "raw" / "deep").mkdir(parents=True)
    (tmp_path / "raw" / "t.csv").write_text("pid\n1\n", encoding="utf-8")
    (tmp_path / "ct").mkdir()
    (tmp_path / "merges.csv").write_text("old,new\n", encoding="utf-8")
    (tmp_path / "s.yaml").write_text(SOURCE, encoding="utf-8")
    return tmp_path


def settings(site: Path, root: str = "warehouse", **changes: Any) -> RunSettings:
    keys = {
        "sources": "[{source: s.yaml, path: raw}]",
        "modalities": "{ct: {path: ct, encoder: {name: random-dinov2, width: 1024}}}",
        "merges": "merges.csv",
        "deid": "{mode: synthetic}",
    } | changes
    config = site / "run.yaml"
    config.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()), encoding="utf-8")
    return RunSettings(config, Path(root) if ":" in root else site / root)


def refusal(asked: RunSettings) -> str:
    with pytest.raises(TimeloomError) as caught:
        configured(asked)
    return str(caught.value)


def test_folders_apart_are_taken(site: Path) -> None:
    config, layout = configured(settings(site))
    assert (config.name, layout.root) == ("timeloom", site / "warehouse")
    # A root beside its export, whose name only begins alike, is not inside it.
    assert configured(settings(site, "raw-warehouse"))[1].root == site / "raw-warehouse"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"sources": "[{source: s.yaml, path: raw}, {source: s.yaml, path: away}]"}, "sources.1.path"),
        ({"modalities": "{ct: {path: away, encoder: {name: random-dinov2, width: 1024}}}"}, "modalities.ct.path"),
        ({"merges": "away.csv"}, "merges"),
    ],
)
def test_what_is_missing_is_named_by_its_key(site: Path, changes: dict[str, str], key: str) -> None:
    assert refusal(settings(site, **changes)).startswith(f"{key} does not exist: {site}/away")


@pytest.mark.parametrize("root", ["raw", "raw/warehouse", "raw/deep/er", "ct/x", "linked/warehouse"])
def test_a_root_in_raw_files_is_refused(site: Path, root: str) -> None:
    (site / "linked").symlink_to(site / "raw")
    key = "modalities.ct.path" if root.startswith("ct") else "sources.0.path"
    assert f"lies in the raw files of {key}" in refusal(settings(site, root))


def test_raw_files_in_a_root_are_refused(site: Path) -> None:
    (site / "warehouse.private" / "raw").mkdir(parents=True)
    assert "the raw files of sources.0.path lie in" in refusal(settings(site, "."))
    hidden = "[{source: s.yaml, path: warehouse.private/raw}]"
    assert "lie in warehouse.private" in refusal(settings(site, sources=hidden))


def test_a_dataset_in_raw_files_is_refused(site: Path) -> None:
    with pytest.raises(TimeloomError, match=r"meds lies in the raw files of sources\.0\.path"):
        convert(settings(site, str(site / "warehouse")), site / "raw" / "meds")
    assert {path.name for path in (site / "raw").iterdir()} == {"t.csv", "deep"}


@pytest.mark.parametrize("address", ["s3://bucket/warehouse", "gs://bucket", "abfss://c@a/x", "file:///tmp/x"])
def test_an_address_is_no_root(site: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site)
    assert "--root takes a folder of this machine" in refusal(settings(site, address))
    sources = f"[{{source: s.yaml, path: '{address}'}}]"
    assert "sources.0.path: a file or folder of this machine is needed" in refusal(settings(site, sources=sources))
    asked = settings(site)
    for command in (["meds", str(asked.config), "--out", address], ["demo", "--root", address], ["simulate", address]):
        result = CliRunner().invoke(cli.app, command)
        assert isinstance(result.exception, TimeloomError), result.output
        assert "takes a folder of this machine" in result.exception.message
    assert {path.name for path in site.iterdir()} == {"raw", "ct", "merges.csv", "s.yaml", "run.yaml"}


def test_no_server_starts_for_a_wrong_path(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any) -> None:
        raise AssertionError("a server was started")

    monkeypatch.setattr(flows.prefect_server, "ensure_server", start)
    asked = settings(site, sources="[{source: s.yaml, path: away}]")
    result = CliRunner().invoke(cli.app, ["run", str(asked.config), "--root", str(asked.root)])
    assert isinstance(result.exception, TimeloomError)
    assert "sources.0.path does not exist" in result.exception.message


@pytest.mark.parametrize("table", ["../t", "/etc/t", "a/../../t", "./t", "a//t", "..\\t", "C:/t", "a/"])
def test_a_table_outside_the_export_is_refused(site: Path, table: str) -> None:
    (site / "s.yaml").write_text(f"name: s\nsubject: pid\ntables:\n  '{table}': {{events: [{{code: X}}]}}\n", "utf-8")
    with pytest.raises(TimeloomError, match="names no table below the source's folder"):
        convert(settings(site, modalities="{}"), site / "meds")


def test_a_table_of_images_is_held_against_them_before_any_work(site: Path) -> None:
    (site / "films").mkdir()
    (site / "films" / "a.png").write_bytes(b"not looked at")
    encoder = "encoder: {name: random-dinov2, width: 8}"
    keys = "{cxr: {path: films, table: {file: films.csv}, " + encoder + "}}"
    assert "modalities.cxr.table.file does not exist" in refusal(settings(site, modalities=keys))
    (site / "films.csv").write_text("image,subject_id\na.png,1\nb.png,2\n", encoding="utf-8")
    said = refusal(settings(site, modalities=keys))
    assert "1 of the 2 files that modalities.cxr.table.file names are not there" in said and "b.png" not in said
    (site / "films.csv").write_text("image,subject_id\na.png,1\n", encoding="utf-8")
    configured(settings(site, modalities=keys))
