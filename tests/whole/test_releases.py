"""Releases over three nights: how two differ, why a file stands, a past night made again, what is collected."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from flows.commands.backfill import backfill
from flows.commands.diff import compare, print_difference
from flows.commands.gc import carry_out, read_kept
from flows.commands.status import describe, describe_releases
from flows.commands.terminal import console
from flows.commands.why import why
from flows.runs.settings import RunSettings
from pipelines.night import Stage
from pipelines.stages import STAGES
from tests.support.nights.damage import flip
from tests.support.nights.site import Site, site_of_tables
from validation.difference import RARE, difference, tables_of
from validation.report.cells import Cells
from warehouse import Release
from warehouse.errors import TimeloomError
from warehouse.manifest import Manifest, read_manifest

NEW_CODE = "99999-9"


@dataclass
class Nights:
    """A site after three nights, and its tables before each of them."""

    site: Site
    names: list[str]
    tables: list[Path]

    def manifest(self, night: int) -> Manifest:
        return read_manifest(self.site.layout.releases / self.names[night] / "manifest.json")

    def settings(self) -> RunSettings:
        config = self.site.folder / "run.yaml"
        config.write_text(yaml.safe_dump(self.site.config))
        return RunSettings(config, self.site.layout.root, workers=1)

    def copy(self, folder: Path) -> "Nights":
        """The same in another folder, to be changed. Its raw files are those of the last night."""
        shutil.copytree(self.site.folder, folder, symlinks=True)
        return Nights(Site(folder, dict(self.site.config)), self.names, [folder / path.name for path in self.tables])

    def with_tables_of(self, night: int) -> None:
        shutil.rmtree(self.site.folder / "tables")
        shutil.copytree(self.tables[night], self.site.folder / "tables")


def withdraw(tables: Path, patient: str) -> None:
    """Takes every row of a patient out of the tables."""
    for path in tables.glob("*.csv"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if patient not in line.split(",")), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Nights:
    """Rows of a new code for one patient came in the second night; another patient was withdrawn in the third."""
    folder = tmp_path_factory.mktemp("nights") / "site"
    folder.mkdir()
    site = site_of_tables(folder, export)
    site.config["keep"] = {"segments": 2, "nightly": False}
    nights = Nights(site, [], [])
    labs = folder / "tables" / "labs.csv"
    for night in range(3):
        if night == 1:
            first = labs.read_text(encoding="utf-8").splitlines()[1].split(",")
            with labs.open("a", encoding="utf-8") as file:
                for number in range(3):
                    file.write(",".join([f"L-new{number}", *first[1:3], NEW_CODE, *first[4:]]) + "\n")
        if night == 2:
            withdraw(folder / "tables", "P000005")
        nights.tables.append(folder / f"tables{night}")
        shutil.copytree(folder / "tables", nights.tables[-1])
        nights.names.append(site.night().release)
    return nights


@pytest.fixture
def nights(made: Nights, tmp_path: Path) -> Nights:
    return made.copy(tmp_path / "site")


def silent(*_: Any) -> None:
    """Progress that nobody looks at."""


def rows_of(nights: Nights, night: int) -> Counter[tuple[Any, ...]]:
    frame = pl.read_parquet(str(nights.site.layout.releases / nights.names[night] / "data" / "*.parquet"))
    return Counter(frame.iter_rows())


def test_a_difference_is_that_of_the_rows(made: Nights) -> None:
    for earlier, later in ((0, 1), (1, 2), (0, 2), (2, 0)):
        had, has = rows_of(made, earlier), rows_of(made, later)
        came, went = has - had, had - has
        found = compare(made.site.layout.root, made.names[earlier], made.names[later], silent)
        expected: dict[tuple[str, str], list[int]] = {}
        for place, part in enumerate((came, went)):
            for row, number in part.items():
                expected.setdefault((row[9], row[2]), [0, 0])[place] += number
        assert {(row["table"], row["code"]): [row["added"], row["removed"]] for row in found["codes"]} == expected
        assert {row["table"]: row["added"] for row in found["tables"]} == {
            table: sum(added for (source, _), (added, _) in expected.items() if source == table)
            for table in {source for source, _ in expected}
        }
        subjects = [{row[0] for row in rows} for rows in (had, has)]
        assert found["subjects"] == {
            "added": len(subjects[1] - subjects[0]),
            "withdrawn": len(subjects[0] - subjects[1]),
            "changed": len({row[0] for row in (*came, *went)} & subjects[0] & subjects[1]),
        }
    assert found["subjects"]["added"] == 1


def test_a_difference_names_tokens_splits_and_shards(made: Nights) -> None:
    root = made.site.layout.root
    second = compare(root, made.names[0], made.names[1], silent)
    (vocabulary,) = second["vocabularies"]
    assert (vocabulary["added"], vocabulary["gone"], vocabulary["renumbered"]) == (1, 0, 0)
    assert vocabulary["most_frequent"] == [f"LOINC/{NEW_CODE}"]
    assert not second["splits"]
    third = compare(root, made.names[1], None, silent)
    assert third["after"] == made.names[2]
    assert sum(row["withdrawn"] for row in third["splits"]) == 1
    assert not any(row["moved_away"] or row["added"] for row in third["splits"])
    assert any(row["changed"] for row in third["shards"])
    print_difference(third, console)
    nothing = compare(root, made.names[2], made.names[2], silent)
    assert nothing["same"]
    assert not any(nothing[name] for name in ("codes", "splits", "vocabularies", "items", "keys", "event_files_read"))


def test_a_file_that_both_have_is_not_read(made: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    checked = Release.checked

    def seen(release: Release, path: Path) -> Path:
        read.append(path)
        return checked(release, path)

    monkeypatch.setattr("warehouse.readers.pinned.PinnedRelease.checked", seen)
    found = compare(made.site.layout.root, made.names[0], made.names[1], silent)
    events = [path for path in read if path.parent.name == "data"]
    assert found["event_files_read"] == len(events) == 2
    (bucket,) = {path.name for path in events}
    for name in ("0000.parquet", "0001.parquet", "0002.parquet", "0003.parquet"):
        same = len({made.manifest(night).files[f"data/{name}"].sha256 for night in (0, 1)}) == 1
        assert same == (name != bucket)


def test_small_counts_of_patients_are_hidden(made: Nights) -> None:
    pinned = [Release.open(made.site.layout.root, name) for name in made.names]
    real = [
        Release(
            each.layout,
            each.files,
            each.manifest.model_copy(update={"deid": each.manifest.deid.model_copy(update={"mode": "expert"})}),
        )
        for each in pinned
    ]
    second = difference(real[0], real[1], silent)
    assert second["subjects"] == {"added": 0, "withdrawn": 0, "changed": None, "withheld": "changed: 1–10"}
    # Three events have the code: its name alone would say that somebody has it.
    assert [(row["code"], row["added"]) for row in second["codes"]] == [(RARE, None)]
    assert second["vocabularies"][0]["most_frequent"] == []
    third = difference(real[1], real[2], silent)
    shown = [row["removed"] for row in third["codes"] if row["removed"] is not None]
    assert all(count == 0 or count > 10 for count in shown)
    for table in third["tables"]:
        hidden = [row for row in third["codes"] if row["table"] == table["table"] and row["removed"] is None]
        # A hidden code alone would be the table's count less the others.
        assert len(hidden) != 1 or table["removed"] is None
    assert all(row["withdrawn"] in (0, None) for row in third["splits"])


def test_what_each_patient_has_once_does_not_give_their_number_away() -> None:
    events = pl.DataFrame({"source": ["patients"] * 3, "code": ["BIRTH", "ETHNICITY", "SEX"], "added": [6] * 3})
    events = events.with_columns(removed=pl.lit(30))
    (row,) = tables_of(events, Cells(open=False))
    assert row == {"table": "patients", "added": None, "removed": 90, "withheld": "added: withheld"}
    assert tables_of(events, Cells(open=True)) == [{"table": "patients", "added": 18, "removed": 90}]


def bucket_with(made: Nights, night: int) -> str:
    """The bucket that changed in a night."""
    old, new = (
        read_manifest(made.site.layout.releases / made.names[at] / "manifest.json") for at in (night - 1, night)
    )
    (name,) = (name for name in new.files if name.startswith("data/") and old.files[name] != new.files[name])
    return name


def test_what_made_a_file_and_since_when_it_stands(made: Nights) -> None:
    root, changed = made.site.layout.root, bucket_with(made, 1)
    found = why(root, changed, release=made.names[1])
    manifest = made.manifest(1)
    assert (found["stage"], found["task"]) == ("align", Path(changed).stem)
    assert found["version"] == manifest.stages["align"]
    assert found["fingerprint"] == manifest.tasks[f"align/{Path(changed).stem}"].fingerprint
    assert found["because"].keys() == {"trial", "columns of items", "rows of tables", "lags", "items"}
    assert (found["since"], found["at_least"]) == (made.names[1], False)
    assert found["then"] == ["rows of tables"]
    still = next(
        name
        for name in manifest.files
        if name.startswith("data/")
        and len(
            {read_manifest(made.site.layout.releases / at / "manifest.json").files[name].sha256 for at in made.names}
        )
        == 1
    )
    assert why(root, still)["since"] == made.names[0]
    assert why(root, "quality/report.html")["stage"] == "validate"
    with pytest.raises(TimeloomError, match=r"has no file data/9\.parquet; did you mean data/000"):
        why(root, "data/9.parquet")


def test_why_a_file_would_be_made_anew(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    root = nights.site.layout.root
    timeline, events = "timelines/mehrt/0001.parquet", "data/0001.parquet"

    def changes(path: str) -> set[tuple[str, str]]:
        config = nights.settings().config
        found = why(root, path, config=config)
        return {(change["kind"], change["name"]) for change in found["changed"]}

    before = sorted(path for path in root.parent.rglob("*") if path.is_file())
    assert changes(timeline) == changes(events) == set()
    nights.site.config["profiles"] = {"mehrt": {"context": 512}}
    assert changes(timeline) == {("key", "profiles.mehrt.context")}
    assert changes(events) == set()
    del nights.site.config["profiles"]
    nights.site.change("medications", ",11202,", ",999001,")
    assert changes(events) == {("table", "simulated-hospital/medications")}
    nights.with_tables_of(2)
    assert changes(events) == set()
    align = next(stage for stage in STAGES if stage.name == "align")
    newer = Stage(**{**vars(align), "version": align.version + 1})
    monkeypatch.setitem(why.__globals__["BY_NAME"], "align", newer)
    assert changes(timeline) == {("stage", "align")}
    assert sorted(path for path in root.parent.rglob("*") if path.is_file()) == [
        *sorted({*before, nights.site.folder / "run.yaml"})
    ]


def test_any_release_that_is_there_is_described(made: Nights) -> None:
    root = made.site.layout.root
    assert [row["release"] for row in describe_releases(root)] == made.names[::-1]
    assert [row["current"] for row in describe_releases(root)] == [True, False, False]
    assert describe(root, made.names[0])["release"] == made.names[0]
    assert Release.open(root, release=made.names[0]).manifest.release_id == made.names[0]
    with pytest.raises(TimeloomError, match="there is no release 2020; the latest are"):
        describe(root, "2020")


def test_a_past_night_is_made_again_of_its_segments_or_its_raw_files(nights: Nights) -> None:
    settings = nights.settings()
    remembered = (nights.site.layout.private / "fingerprints.json").read_bytes()
    current = nights.site.layout.current.readlink()
    second = backfill(settings, nights.names[1], restore=False)
    assert (second.same, second.stands, second.other) == (True, True, [])
    assert "simulated-hospital/labs" in second.from_segments
    assert second.content_hash == read_manifest(
        nights.site.layout.releases / nights.names[1] / "manifest.json"
    ).content_hash  # fmt: skip
    # keep.segments is 2: those of the first night are gone.
    with pytest.raises(TimeloomError, match=rf"{nights.names[0]} cannot be made again: of simulated-hospital/"):
        backfill(settings, nights.names[0], restore=False)
    nights.with_tables_of(0)
    first = backfill(settings, nights.names[0], restore=False)
    assert (first.same, first.from_segments) == (True, [])
    assert nights.site.layout.current.readlink() == current
    assert (nights.site.layout.private / "fingerprints.json").read_bytes() == remembered
    assert not nights.site.layout.past.exists()


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_damaged_segment_is_not_made_of_the_raw_file_of_now(nights: Nights, damage: Callable[[Path], None]) -> None:
    segments = nights.site.layout.segments
    for name in set(nights.manifest(1).records) - set(nights.manifest(2).records):
        path = segments / f"{name}.segment"
        if path.is_file():
            damage(path)
    before = {path: path.read_bytes() for path in segments.iterdir()}
    with pytest.raises(TimeloomError, match=rf"{nights.names[1]} cannot be made again: of simulated-hospital/"):
        backfill(nights.settings(), nights.names[1], restore=False)
    assert {path: path.read_bytes() for path in segments.iterdir()} == before


def test_a_release_that_was_collected_comes_back(nights: Nights) -> None:
    layout = nights.site.layout
    gone = nights.names[0]
    before = read_manifest(layout.releases / gone / "manifest.json")
    shutil.rmtree(layout.releases / gone)
    with pytest.raises(TimeloomError, match=rf"continued {gone}, which is gone.*timeloom backfill CONFIG {gone}"):
        backfill(nights.settings(), nights.names[1], restore=False)
    nights.with_tables_of(0)
    found = backfill(nights.settings(), gone, restore=True)
    assert (found.same, found.stands, found.restored) == (True, False, True)
    after = read_manifest(layout.releases / gone / "manifest.json")
    assert (after.content_hash, after.release_id, after.run_id, after.created_at) == (
        before.content_hash, before.release_id, before.run_id, before.created_at
    )  # fmt: skip
    assert list(Release.open(layout.root, release=gone).shards("mehrt", split="train").batches(2))
    with pytest.raises(TimeloomError, match="names no release 2020"):
        backfill(nights.settings(), "2020", restore=False)


def test_another_rule_makes_another_hash_and_says_which(nights: Nights) -> None:
    nights.site.config["profiles"] = {"mehrt": {"context": 512}}
    found = backfill(nights.settings(), nights.names[2], restore=False)
    assert not found.same
    assert "files of stage pack" in found.other
    assert "files of stage align" not in found.other
    assert "key profiles.mehrt.context" in found.other


# Two more nights.
@pytest.mark.proof
def test_the_next_night_after_a_collection_publishes_what_it_would_have(nights: Nights, tmp_path: Path) -> None:
    other = nights.copy(tmp_path / "other")
    kept = read_kept(nights.settings().config, nights.site.layout.root, {"daily": 0, "weekly": 0, "monthly": 0})
    done = carry_out(replace(kept, window=1), apply=True)
    assert set(done.kept) == set(nights.names[1:])
    assert not (nights.site.layout.releases / nights.names[0]).exists()
    for each in (nights, other):
        each.site.change("medications", ",11202,", ",999001,")
        each.site.night()
    assert nights.site.manifest.content_hash == other.site.manifest.content_hash
