"""`timeloom meds` converts raw tables to MEDS files: what it reuses, what survives a kill, what it refuses."""

import csv
import json
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import meds
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml

from extractors.deid import DeidConfig, Deidentifier, load_key
from extractors.simulate import simulate
from flows.runs.convert import Converted, convert
from flows.runs.settings import RunSettings
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file
from warehouse.hashing import bucket_of
from warehouse.layout import Layout, ReleaseLayout
from warehouse.publish import current_release, exclusive
from warehouse.schemas import EVENTS
from warehouse.sealed import read_sealed, write_sealed

# In `make test` alone: each test converts a site.
pytestmark = pytest.mark.whole

REPOSITORY = Path(__file__).parents[3]
BUCKETS = 16
CONFIG = {
    "name": "small",
    "sources": [{"source": "simulated-hospital", "path": "tables"}],
    "deid": {"mode": "synthetic"},
    "buckets": BUCKETS,
    "limits": {"unparsable_times": 0.05},
}


@dataclass
class Place:
    """Raw tables, a configuration, a dataset, and the files that its next conversion reuses."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "dataset"

    @property
    def root(self) -> Path:
        return self.folder / "dataset.root"

    @property
    def config(self) -> Path:
        return self.folder / "run.yaml"

    @property
    def labs(self) -> Path:
        return self.folder / "tables" / "labs.csv"

    def convert(self) -> Converted:
        return convert(RunSettings(self.config, workers=1), self.out)

    def command(self, *more: object) -> list[str]:
        command = [Path(sys.executable).with_name("timeloom"), "meds", self.config, "--out", self.out, "--workers", 1]
        return [str(argument) for argument in (*command, *more)]

    def timeloom(self, *more: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(self.command(*more), capture_output=True, text=True, check=False)

    def files(self) -> dict[str, str]:
        """Every file of the dataset, with the hash of its bytes."""
        found = sorted(path for path in self.out.rglob("*") if path.is_file())
        return {path.relative_to(self.out).as_posix(): sha256_file(path) for path in found}

    def events(self) -> pl.DataFrame:
        return pl.concat([pl.read_parquet(path) for path in sorted((self.out / "data").glob("*.parquet"))])


def prepare(folder: Path, tables: Path) -> Place:
    shutil.copytree(tables, folder / "tables")
    place = Place(folder)
    place.config.write_text(yaml.safe_dump(CONFIG))
    return place


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty patients without images, two of their laboratory rows with times that cannot be read."""
    folder = tmp_path_factory.mktemp("hospital")
    simulate(folder / "hospital", subjects=20, seed=3, imaging_share=0.0)
    return folder / "hospital" / "tables"


@pytest.fixture(scope="module")
def converted(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The tables, converted once. Change nothing."""
    place = prepare(tmp_path_factory.mktemp("converted"), tables)
    place.convert()
    return place


@pytest.fixture
def again(converted: Place, tmp_path: Path) -> Place:
    """A copy of all files of the conversion, with links and times."""
    for path in converted.folder.iterdir():
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name, symlinks=True)
        else:
            shutil.copy2(path, tmp_path)
    return Place(tmp_path)


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
    """The line of the error, after the lines of progress."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("timeloom: ")]
    assert len(said) == 1, done.stderr
    return said[0]


def test_every_file_keeps_its_meds_schema(converted: Place) -> None:
    data = sorted((converted.out / "data").glob("*.parquet"))
    assert len(data) == BUCKETS
    for path in data:
        table = pq.read_table(path)
        meds.DataSchema.validate(table)
        assert table.schema.equals(EVENTS)
    codes = pq.read_table(converted.out / "metadata" / "codes.parquet")
    meds.CodeMetadataSchema.validate(codes)
    assert set(codes["code"].to_pylist()) == set(converted.events()["code"])
    described = json.loads((converted.out / "metadata" / "dataset.json").read_text(encoding="utf-8"))
    meds.DatasetMetadataSchema.validate(described)
    assert set(described["other_extension_columns"]) < set(EVENTS.names)
    with pytest.raises(Exception, match="numeric_value"):
        meds.DataSchema.validate(pq.read_table(data[0]).drop_columns(["numeric_value"]).add_column(
            0, "numeric_value", [["a text"] * pq.read_metadata(data[0]).num_rows]))  # fmt: skip


def test_each_subject_lies_in_one_file_in_the_order_of_time(converted: Place) -> None:
    for bucket in range(BUCKETS):
        events = pl.read_parquet(ReleaseLayout(converted.out).events(bucket))
        assert (bucket_of(events["subject_id"].to_numpy(), BUCKETS) == bucket).all()
        assert events["subject_id"].is_sorted()
        times = events.group_by("subject_id", maintain_order=True).agg(pl.col("time").fill_null(pl.datetime(1, 1, 1)))
        assert all(of.is_sorted() for of in times["time"])


@pytest.mark.whole
def test_the_events_are_those_of_a_release_of_the_same_configuration(converted: Place, tmp_path: Path) -> None:
    root = tmp_path / "warehouse"
    command = [Path(sys.executable).with_name("timeloom"), "run", converted.config, "--root", root]
    command += ["--workers", 1, "--direct", "--json"]
    done = subprocess.run([str(argument) for argument in command], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    release = current_release(Layout(root))
    assert release is not None
    same = [*(f"data/{bucket:04d}.parquet" for bucket in range(BUCKETS)), "metadata/codes.parquet"]
    for name in (*same, "metadata/dataset.json", "ledger.parquet", "quarantine.parquet", "lags.parquet"):
        assert sha256_file(release.path / name) == converted.files()[name], name


def test_the_ledger_and_the_quarantine_account_for_every_raw_row(converted: Place) -> None:
    ledger = pl.read_parquet(converted.out / "ledger.parquet")
    for path in sorted((converted.folder / "tables").glob("*.csv")):
        of = ledger.filter(pl.col("table") == path.stem)
        rows = {
            outcome: of.filter(pl.col("outcome") == outcome)["rows"].sum()
            for outcome in ("raw", "events", "static", "reference", "quarantined")
        }
        assert rows["raw"] == len(path.read_text().splitlines()) - 1
        assert rows["raw"] == sum(rows.values()) - rows["raw"]
    quarantine = pl.read_parquet(converted.out / "quarantine.parquet")
    unreadable = []
    for row, line in enumerate(csv.DictReader(converted.labs.open(encoding="utf-8", newline="")), 1):
        try:
            datetime.strptime(line["collected_time"], "%Y-%m-%d %H:%M:%S")
        except ValueError:
            unreadable.append(("labs", 0, row, "unparsable_time"))
    assert unreadable
    assert quarantine.rows() == unreadable


def test_a_second_conversion_rewrites_nothing(again: Place) -> None:
    before = {path: path.stat().st_mtime_ns for path in (again.out / "data").iterdir()}
    files = again.files()
    done = again.convert()
    assert done.rewritten == 0
    assert again.files() == files
    assert {path: path.stat().st_mtime_ns for path in (again.out / "data").iterdir()} == before


def test_one_row_more_rewrites_the_file_of_its_subject_and_no_other(again: Place) -> None:
    lines = again.labs.read_text().splitlines()
    subject = lines[1].split(",")[lines[0].split(",").index("patient_id")]
    number = lines[0].split(",").index("value")
    added = lines[1].split(",")
    added[number] = "77.25"
    again.labs.write_text("\n".join([*lines, ",".join(added)]) + "\n")
    deid = Deidentifier(DeidConfig(mode="synthetic"), load_key(DeidConfig(mode="synthetic"), again.folder))
    home = int(bucket_of(deid.subject_ids(pl.Series([subject])).to_numpy(), BUCKETS)[0])
    before, events = again.files(), again.events()
    done = again.convert()
    assert done.rewritten == 1
    after = again.files()
    assert {name for name in after if name.startswith("data/") and after[name] != before[name]} == {
        f"data/{home:04d}.parquet"
    }
    assert done.events == events.height + 1
    new = again.events().filter(pl.col("numeric_value") == 77.25)
    assert new.height == events.filter(pl.col("numeric_value") == 77.25).height + 1


def test_a_row_less_is_gone(again: Place) -> None:
    lines = again.labs.read_text().splitlines()
    again.labs.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    events = again.events().height
    assert again.convert().events == events - 1


def fill_folder(out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")


def fill_file(out: Path) -> None:
    out.write_text("years of work")


def fill_other_dataset(out: Path) -> None:
    (out / "metadata").mkdir(parents=True)
    (out / "metadata" / "dataset.json").write_text('{"dataset_name": "theirs", "etl_name": "another"}')


@pytest.mark.whole
@pytest.mark.parametrize("fill", [fill_folder, fill_file, fill_other_dataset])
def test_what_is_no_dataset_of_ours_is_not_touched(again: Place, fill: object) -> None:
    shutil.rmtree(again.out)
    assert callable(fill)
    fill(again.out)
    before = again.files() if again.out.is_dir() else {"": sha256_file(again.out)}
    assert "holds something else" in one_line(again.timeloom())
    assert (again.files() if again.out.is_dir() else {"": sha256_file(again.out)}) == before


def test_an_empty_folder_is_taken(again: Place) -> None:
    files = again.files()
    shutil.rmtree(again.out)
    again.out.mkdir()
    again.convert()
    assert again.files() == files


# A kill at a known moment: the process dies in the n-th call of a function.
DEADLY = """
import importlib, os, signal, sys
module, name, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
target = importlib.import_module(module)
right = getattr(target, name)
def deadly(*given):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return right(*given)
setattr(target, name, deadly)
sys.argv = ["timeloom", *sys.argv[4:]]
from flows.cli import main
main()
"""


def kill(place: Place, module: str, name: str, calls: int) -> None:
    """Converts in a process that is killed at a call of a function, after `calls` earlier calls of it."""
    command = [sys.executable, "-c", DEADLY, module, name, calls, *place.command()[1:]]
    done = subprocess.run([str(argument) for argument in command], cwd=REPOSITORY, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.whole
@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [
        ("pipelines.meds", "run", 2),
        ("pipelines.lags", "run", 0),
        ("pipelines.align", "run", 5),
        ("pipelines.align", "write_table", 16),
        ("pipelines.metadata", "run", 0),
        ("flows.runs.convert", "link_or_copy", 7),
    ],
)
def test_a_killed_conversion_resumes_and_gives_the_same_bytes(
    converted: Place, tables: Path, tmp_path: Path, module: str, name: str, calls: int
) -> None:
    place = prepare(tmp_path / "killed", tables)
    kill(place, module, name, calls)
    assert not place.out.exists()
    done = place.convert()
    assert place.files() == converted.files()
    finished = {"pipelines.metadata": BUCKETS, "flows.runs.convert": BUCKETS}.get(
        module, 5 if module.endswith("align") else 0
    )
    assert done.rewritten == BUCKETS - finished, "what was finished is not done again"


@pytest.mark.whole
@pytest.mark.parametrize(
    ("module", "name", "calls"), [("pipelines.align", "run", 0), ("flows.runs.convert", "link_or_copy", 3)]
)
def test_a_kill_leaves_the_dataset_before_as_it_is(again: Place, module: str, name: str, calls: int) -> None:
    """Until the conversion is complete, readers of the dataset read the previous one."""
    files = again.files()
    lines = again.labs.read_text().splitlines()
    again.labs.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    kill(again, module, name, calls)
    assert again.files() == files
    again.convert()
    assert again.files() != files


@pytest.mark.whole
def test_of_two_at_once_the_second_is_told_in_one_line(again: Place) -> None:
    with exclusive(Layout(again.root)):
        assert "another run is working on dataset.root" in one_line(again.timeloom())
    assert again.timeloom().returncode == 2


@pytest.mark.whole
def test_quarantined_rows_are_told_with_exit_code_2(again: Place) -> None:
    done = again.timeloom("--json")
    assert done.returncode == 2, done.stderr
    summary = json.loads(done.stdout)
    events = again.events()
    assert summary == {
        "events": events.height,
        "subjects": events["subject_id"].n_unique(),
        "codes": events["code"].n_unique(),
        "quarantined": pl.read_parquet(again.out / "quarantine.parquet").height,
        "buckets": BUCKETS,
        "rewritten": 0,
        "said": [],
    }
    plain = again.timeloom()
    assert plain.returncode == 2
    assert f"{summary['quarantined']} raw rows are quarantined" in plain.stdout + plain.stderr


def test_without_quarantined_rows_the_exit_code_is_0(again: Place) -> None:
    quarantined = pl.read_parquet(again.out / "quarantine.parquet")["row"].to_list()
    lines = again.labs.read_text().splitlines()
    again.labs.write_text("\n".join(line for row, line in enumerate(lines) if row not in quarantined) + "\n")
    done = again.timeloom("--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["quarantined"] == 0


def test_another_number_of_buckets_is_refused(again: Place) -> None:
    again.config.write_text(yaml.safe_dump(CONFIG | {"buckets": 2}))
    assert "was made with another number of buckets" in one_line(again.timeloom())


def test_no_bucket_number_given_one_is_chosen_and_kept(tables: Path, tmp_path: Path) -> None:
    place = prepare(tmp_path / "chosen", tables)
    place.config.write_text(yaml.safe_dump({name: value for name, value in CONFIG.items() if name != "buckets"}))
    first = place.convert()
    assert len(list((place.out / "data").iterdir())) == first.buckets
    lines = place.labs.read_text()
    place.labs.write_text(lines)
    assert place.convert() == Converted(**vars(first) | {"rewritten": 0})


@pytest.mark.whole
def test_the_commands_of_the_readme_convert_the_clinic(tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    shown = [shlex.split(line) for line in lines if line.startswith(("timeloom meds", "timeloom check-source"))]
    assert [words[1] for words in shown] == ["check-source", "meds"]
    for words in shown:
        command = [sys.executable, "-m", "flows.cli", *words[1:]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    ledger = pl.read_parquet(tmp_path / "clinic-meds" / "ledger.parquet")
    assert ledger.filter(pl.col("reason") == "duplicate_row")["rows"].to_list() == [1]


def test_rehash_sees_what_the_file_system_does_not_say(again: Place) -> None:
    """Other content in a file that is remembered as it is now: as on a disk that tells neither times nor inodes."""
    again.convert()
    text = again.labs.read_text()
    assert "mg/dL" in text
    again.labs.write_text(text.replace("mg/dL", "mg/DL"))
    memory = again.folder / "dataset.root.private" / "fingerprints.json"
    known = read_sealed(memory)
    status = again.labs.stat()
    key = str(again.labs.resolve())
    known[key] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, known[key][-1]]
    write_sealed(memory, known)
    assert again.convert().rewritten == 0
    assert convert(RunSettings(again.config, workers=1, rehash=True), again.out).rewritten > 0
    assert "mg/DL" in set(again.events()["unit"])


def test_a_separator_that_nobody_named_is_said(again: Place) -> None:
    before = again.convert()
    with again.labs.open(newline="") as file:
        rows = list(csv.reader(file))
    with again.labs.open("w", newline="") as file:
        csv.writer(file, delimiter=";", lineterminator="\n").writerows(rows)
    found = again.convert()
    assert before.said == []
    assert found.said == ["table labs: semicolons separate its columns, as its header shows"]
    assert found.events == before.events


def test_damaged_lags_stop_a_conversion_until_it_is_made_anew(again: Place) -> None:
    """They only grow from one conversion to the next; the remedy that the line prints is carried out."""
    events = again.events()
    lags = again.root / "conversion" / "release" / "lags.parquet"
    assert lags.is_file()
    raw = bytearray(lags.read_bytes())
    raw[len(raw) // 2] ^= 1
    lags.write_bytes(bytes(raw))
    with pytest.raises(
        TimeloomError, match=r"^lags\.parquet of the conversion before is damaged; delete the folder \S+"
    ):
        again.convert()
    shutil.rmtree(lags.parents[1])
    again.convert()
    assert again.events().equals(events)
