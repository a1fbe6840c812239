"""`timeloom status`: files that no rule mentions have their names on the site's machine, and in no release."""

import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from flows.commands.status import STEP_COLUMNS, _steps, _unmapped, table_of
from tests.support.raw.raw_tables import plan_meds
from warehouse.layout import Layout
from warehouse.sealed import read_sealed, write_sealed

MAPPING = "name: own\nsubject: pid\ntables: {t: {events: [{code: X, time: at}]}}\n"


def test_a_night_keeps_the_names_of_unmapped_files_in_the_private_folder(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for name in ("t", "notes of a friend", "other"):
        (tmp_path / "raw" / f"{name}.csv").write_text("pid,at\n1,2020-01-01\n")
    labels = [task.params["label"] for task in plan_meds(tmp_path, MAPPING)]
    layout = Layout(tmp_path / "warehouse")
    kept = read_sealed(layout.unmapped_files)
    assert sorted(kept.values()) == ["notes of a friend.csv", "other.csv"]
    assert sorted(kept) == sorted(label for label in labels if label != "t")
    below = [path for path in layout.root.rglob("*") if path.is_file()]
    assert all(b"friend" not in path.read_bytes() for path in below)
    # Those that the release has, told by the names of its sources.
    first = next(label for label, name in kept.items() if name == "other.csv")
    assert _unmapped(layout.root, [f"own/{first}/3", "own/t/0"]) == [{"table": first, "file": "other.csv"}]
    layout.unmapped_files.unlink()
    assert _unmapped(layout.root, [f"own/{first}/3"]) == []


def test_the_time_of_each_step_stands_in_its_runs_record(tmp_path: Path) -> None:
    step = {"step": "align", "ran": 3, "linked": 1, "resumed": 0, "seconds": 1.5, "cpu_seconds": 2.25, "stages": []}
    write_sealed(Layout(tmp_path).lineage / "r1.json", {"steps": [step]})
    found = _steps(tmp_path, "r1")
    assert found == [step]
    text = StringIO()
    console = Console(width=100, file=text)
    console.print(table_of("steps", found, STEP_COLUMNS))
    heading, row = text.getvalue().splitlines()[:2]
    assert heading.split() == ["step", "ran", "linked", "resumed", "seconds", "seconds", "of", "processors"]
    assert row.split() == ["align", "3", "1", "0", "1.5", "2.2"]
    assert _steps(tmp_path, "r2") == [], "a run without a record"


def test_status_needs_nothing_that_runs_need() -> None:
    rooms = "{name.partition('.')[0] for name in sys.modules} & {'extractors', 'pipelines', 'validation', 'yaml'}"
    code = f"import sys; import flows.commands.status; sys.exit(', '.join({rooms}))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr.strip() == ""
    )
