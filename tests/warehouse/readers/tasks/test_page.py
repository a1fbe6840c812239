"""docs/probes.md and its example do what they say."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.support.cohort import PROFILE, TASK, cohort, draw
from warehouse import Release, TimeloomError
from warehouse.embeddings.store import close_stores

REPOSITORY = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "root"
    cohort(path, *draw(5))
    return path


def example() -> ModuleType:
    spec = spec_from_file_location("probes", REPOSITORY / "docs/examples/probes.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_s_snippets_run_in_order(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (REPOSITORY / "docs/probes.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    assert len(blocks) == 5
    for block in blocks:
        exec(block.replace("/data/timeloom", str(root)), names)
    np.testing.assert_array_equal(names["X"].toarray(), names["table"].dense())  # type: ignore[attr-defined]
    close_stores()


def test_the_example_shows_a_label_side_by_side(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["probes.py", str(root), "--task", TASK, "--label", "2", "--length", "3"])
    module = example()
    module.main()
    lines = capsys.readouterr().out.splitlines()
    release = Release.open(root)
    label = release.labels(TASK).row(2, named=True)
    assert lines[0] == f"{TASK}: label {label['boolean_value']}, split {label['split']}, fold {label['fold']}"
    history, prompt, features = zip(*(line.ljust(200).split(" | ") for line in lines[4:]), strict=True)
    table = release.features(TASK, modalities=[]).read()
    names = table.columns["name"].to_list()
    wanted = [f"{value:6.1f}  {names[column]}" for column, value in enumerate(table.dense()[2]) if value != 0]
    assert [cell.rstrip() for cell in features] == [*wanted, *[""] * (len(features) - len(wanted))]
    assert len([cell for cell in history if cell.strip()]) <= 3 and [*map(str.strip, history)] == [
        *map(str.strip, prompt)
    ]


def test_the_example_shows_no_patient(root: Path) -> None:
    release = Release.open(root)
    deid = release.manifest.deid.model_copy(update={"mode": "limited"})
    real = Release(release.layout, release.files, release.manifest.model_copy(update={"deid": deid}))
    with pytest.raises(TimeloomError, match="not simulated"):
        example().side_by_side(real, PROFILE, TASK, 0, 3)
    with pytest.raises(TimeloomError, match="labels"):
        example().side_by_side(release, PROFILE, TASK, 10_000, 3)
