"""A loss that is agreed to on the command line reaches the run, with Prefect and without."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import cli
from flows.commands.terminal import StageProgress
from flows.runs.gate import check_names
from flows.runs.settings import RunSettings
from tests.support.nights.toy_stage import toy_manifest
from warehouse.errors import TimeloomError
from warehouse.manifest import ContentEntry


@pytest.fixture
def carried_out(monkeypatch: pytest.MonkeyPatch) -> list[RunSettings]:
    """The settings of the runs that are started; nothing runs."""
    started: list[RunSettings] = []
    monkeypatch.setattr(cli, "_carry_out", lambda settings, **_: started.append(settings))
    return started


def test_run_and_demo_take_names_several_times(
    carried_out: list[RunSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nobody = SimpleNamespace(subjects=0, in_words="")
    monkeypatch.setattr("extractors.simulate.simulate", lambda *_, **__: nobody)
    losses = ["--accept-loss", "labs", "--accept-loss", "site/notes"]
    for command in (["run", "site.yaml"], ["demo", "--root", str(tmp_path)]):
        result = CliRunner().invoke(cli.app, [*command, *losses], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    CliRunner().invoke(cli.app, ["run", "site.yaml"], catch_exceptions=False)
    assert [settings.accept_loss for settings in carried_out] == [("labs", "site/notes"), ("labs", "site/notes"), ()]


@pytest.mark.whole
def test_the_flow_of_prefect_takes_them_as_a_parameter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import flows.nightly
    import flows.prefect_server

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(flows.prefect_server, "ensure_server", lambda *_: None)
    parameters = flows.nightly.nightly.parameters.properties
    monkeypatch.setattr(flows.nightly, "nightly", lambda **given: asked.append(given))
    config = tmp_path / "site.yaml"
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "t.csv").write_text("pid\n1\n", encoding="utf-8")
    source = "name: s\nsubject: pid\ntables: {t: {events: [{code: X}]}}\n"
    (tmp_path / "s.yaml").write_text(source, encoding="utf-8")
    config.write_text("sources: [{source: s.yaml, path: raw}]\n", encoding="utf-8")
    cli._in_prefect(RunSettings(config, tmp_path / "warehouse", accept_loss=("labs",)), StageProgress(quiet=True))
    assert asked[0]["accept_loss"] == ["labs"]
    assert set(asked[0]) <= set(parameters)


def test_a_name_that_tables_of_several_sources_have_is_refused() -> None:
    parent = toy_manifest({}, "before").model_copy(
        update={
            "contents": tuple(
                ContentEntry(kind="table", name=name, within=source, counts={"rows": 1})
                for name, source in (("labs", "archive"), ("labs", "site"), ("notes", "site"))
            )
        }
    )
    check_names({"archive/labs", "notes"}, parent)
    with pytest.raises(TimeloomError, match=r"several sources have a table labs; name one of archive/labs, site/labs"):
        check_names({"labs"}, parent)
