"""`timeloom features` writes what the reader gives, and says in one line what is wrong."""

import json
import sys
from pathlib import Path

import polars as pl
import pytest

from flows.cli import main
from tests.support.cohort import TASK, cohort, draw, label_frame
from warehouse.embeddings.store import close_stores


def timeloom(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["timeloom", "features", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_features_are_written_of_a_task_and_of_label_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, labels = draw(3)
    release = cohort(tmp_path / "root", facts, labels)
    at_root = ("--root", str(tmp_path / "root"))
    assert timeloom(monkeypatch, TASK, str(tmp_path / "out"), *at_root, "--split", "train", "--json") == 0
    written = json.loads(capsys.readouterr().out)
    table = release.features(TASK, splits="train").read()
    assert written["rows.parquet"] == len(table.rows) > 0 and written["matrix.parquet"] == len(table.sparse.values)
    assert pl.read_parquet(tmp_path / "out" / "rows.parquet").equals(table.rows)
    label_frame(labels[:3]).write_parquet(tmp_path / "some.parquet")
    words = ("mine", str(tmp_path / "other"), *at_root, "--labels", str(tmp_path / "some.parquet"), "--modality", "ct")
    assert timeloom(monkeypatch, *words) == 0
    assert "3 labels" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "other" / "wsi.parquet").exists() and (tmp_path / "other" / "ct.parquet").exists()
    for words, said in (
        (("no_task", str(tmp_path / "new"), *at_root), "no labels of no_task"),
        ((TASK, str(tmp_path / "out"), *at_root), "not empty"),
        ((TASK, str(tmp_path / "new"), *at_root, "--clock", "birth"), "no clock birth"),
    ):
        assert timeloom(monkeypatch, *words) == 1
        assert said in " ".join("".join(capsys.readouterr()).split())
    close_stores()
