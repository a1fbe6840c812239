"""A raw file that is rewritten while it is read is read once more, or stops the run; nothing is made of a mixture."""

from pathlib import Path

import pytest
import yaml

from extractors.deid import load_key
from pipelines import meds
from pipelines.aligning.segments import read_texts
from pipelines.config import parse_config
from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.local import LocalEngine
from pipelines.night import Night, carry_out
from tests.support.nights.rewriting import MODULE, rewrite_while_read
from tests.support.raw.raw_tables import read_pieces
from warehouse.errors import TimeloomError
from warehouse.layout import Layout

# In `make test` alone: every night starts worker processes.
pytestmark = pytest.mark.whole

READS_A_TABLE = "extractors.tables.raw_table:RawTable.blocks"
SOURCE = {
    "name": "test",
    "subject": "pid",
    "crosswalks": {"wards": {"columns": ["ward", "floor"]}},
    "tables": {
        "labs": {
            "joins": [{"table": "crosswalk/wards", "key": {"ward": "ward"}, "columns": {"floor": "floor"}}],
            "events": [{"code": "LAB/{floor}", "time": "at"}],
        },
        "visits": {"events": [{"code": "VISIT", "time": "at"}]},
    },
}


def rows(number: int, first: int = 0) -> bytes:
    """A table of so many rows, a subject each."""
    lines = [f"{patient},W1,2020-01-01 08:00:00" for patient in range(first, first + number)]
    return "\n".join(["pid,ward,at", *lines, ""]).encode()


class Clinic:
    """Two tables and a crosswalk, and nights of the stage that reads them, in two worker processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.layout = folder, Layout(folder / "warehouse")
        self.labs, self.wards = folder / "raw" / "labs.csv", folder / "wards.csv"
        self.labs.parent.mkdir(parents=True)
        self.labs.write_bytes(rows(50))
        (folder / "raw" / "visits.csv").write_bytes(rows(20))
        self.wards.write_text("ward,floor\nW1,F1\n")
        (folder / "source.yaml").write_text(yaml.safe_dump(SOURCE))

    def night(self) -> StageReport:
        named = {"source": "source.yaml", "path": "raw", "crosswalks": {"wards": "wards.csv"}}
        deid = {"mode": "synthetic", "subject_ids": "keep", "dates": "keep"}
        config = parse_config({"sources": [named], "deid": deid, "buckets": 1}, self.folder, "test")
        load_key(config.deid, self.layout.private, create=True)
        with LocalEngine(2, modules=(MODULE,)) as engine:
            context = RunContext(engine, self.folder / "work", None, None)
            fingerprints = Fingerprints(self.layout.private)
            night = Night(config, self.folder, self.layout, context, fingerprints)
            try:
                (report,) = carry_out(meds.STAGE, night, [meds.STAGE])
            finally:
                fingerprints.save()
        return report

    def codes(self, report: StageReport) -> dict[str, int]:
        """Rows of labs by code, as the segment that the record names holds them."""
        (counts,) = [entry.counts for entry in report.entries.values() if entry.counts["table"] == "labs"]
        segment = self.layout.segments / counts["segment"]
        found = read_pieces(segment, counts["buckets"]["0"]["pieces"]) if counts["buckets"] else None
        assert found is not None and len(found) == counts["events"]
        codes = read_texts(segment, counts["blobs"]["codes"])
        return {codes[code]: rows for code, rows in found["code"].value_counts().iter_rows()}


def rest(clinic: Clinic, waiting: Path) -> None:
    """Nothing rewrites labs any more; it has 99 rows."""
    for path in waiting.iterdir():
        path.unlink()
    clinic.labs.write_bytes(rows(99))


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


def test_a_table_rewritten_while_it_is_read_is_planned_and_read_anew(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rewrite_while_read(monkeypatch, tmp_path / "waiting", clinic.labs, [rows(80)], READS_A_TABLE)
    report = clinic.night()
    assert clinic.codes(report) == {"LAB/F1": 80}
    assert (report.ran, report.resumed) == (2, 0), "what was read of the other table stays"
    assert clinic.night().resumed == 2, "the next night finds it done"


def test_a_table_that_never_rests_is_one_line_and_the_next_night_reads_it(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    contents = [rows(50 + number) for number in range(1, 5)]
    rewrite_while_read(monkeypatch, tmp_path / "waiting", clinic.labs, contents, READS_A_TABLE)
    with pytest.raises(TimeloomError, match=r"^the table labs changed while it was read, and again") as raised:
        clinic.night()
    assert "\n" not in str(raised.value) and str(clinic.folder) not in str(raised.value)
    assert not [path for path in clinic.layout.segments.glob("*.json") if "labs" in path.read_text()]
    rest(clinic, tmp_path / "waiting")
    assert clinic.codes(clinic.night()) == {"LAB/F1": 99}


def test_half_a_file_that_cannot_be_read_is_a_change_and_no_broken_table(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    contents = [b'pid,ward,at\n"' + b"1" * number for number in range(9)]
    opens_a_table = "extractors.tables.export:Export.open"
    rewrite_while_read(monkeypatch, tmp_path / "waiting", clinic.labs, contents, opens_a_table)
    with pytest.raises(TimeloomError, match=r"^the table labs changed while it was read, and again"):
        clinic.night()
    rest(clinic, tmp_path / "waiting")
    assert clinic.codes(clinic.night()) == {"LAB/F1": 99}


def test_a_crosswalk_rewritten_while_it_is_looked_up_is_planned_anew(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rewrite_while_read(monkeypatch, tmp_path / "waiting", clinic.wards, [b"ward,floor\nW1,F2\n"], READS_A_TABLE)
    assert clinic.codes(clinic.night()) == {"LAB/F2": 50}
