"""What earlier nights left in the folder of segments and in the private one goes when no task has it any more."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flows.runs.run import Run
from warehouse.layout import Layout

# By stage what tonight's task left, and what one of an earlier night did.
LEFT = {
    "index": ("items-note-1", "items-note-0"),
    "scan": ("ct-1", "ct-0"),
    "group": ("note-1", "note-0"),
    "digests": ("0000-ab-1", "0000-ab-0"),
}


def test_what_no_task_of_a_night_has_is_forgotten(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "warehouse")
    config: Any = SimpleNamespace(keep=None)
    no_engine: Any = None
    run = Run(config, tmp_path, layout, no_engine)
    folders = dict(zip(LEFT, (layout.segments, layout.scanned, layout.grouped, layout.digests), strict=True))
    for stage, names in LEFT.items():
        folders[stage].mkdir(parents=True)
        for name in names:
            for ending in (".parquet", ".json"):
                (folders[stage] / f"{name}{ending}").touch()
    for name in LEFT["group"]:
        (layout.grouped / name).mkdir()
        (layout.grouped / name / "notes.arrow").touch()
    reports = {stage: SimpleNamespace(hashes={f"{names[0]}.parquet": ""}.copy) for stage, names in LEFT.items()}
    night: Any = SimpleNamespace(reports=reports)
    run.night = night
    run._forget_old_segments()
    for stage, names in LEFT.items():
        assert {path.stem for path in folders[stage].iterdir()} == {names[0]}
    assert (layout.grouped / "note-1" / "notes.arrow").is_file()
