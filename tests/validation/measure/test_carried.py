"""Measures of a bucket that are mended by its changed subjects, held against those that are measured anew."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipelines.carrying.compared import SubjectsFile, changed_subjects
from pipelines.engine.former import Former, whole_former
from tests.support.cohort import CODES, PROFILE, TASK, Fact, Label, cohort, draw
from tests.support.releases import BUCKETS, SCHEME, write_scheme_subjects
from tests.validation.gate.labels import ENTRY
from validation.measure import carried as module
from validation.measure.carried import carried
from validation.measure.tasks import Facts, Params, Tables, measured, readings, write_measures
from warehouse.embeddings.store import close_stores
from warehouse.files import sha256_file
from warehouse.hashing import bucket_of
from warehouse.layout import ReleaseLayout
from warehouse.manifest import FileEntry, read_manifest
from warehouse.parquet import read_frame, write_table, write_tables
from warehouse.schemas import EVENTS, MEASURES, TIMELINES

SUBJECTS = 40
# Those of the first bucket, which is the one that is looked at.
HOME = [subject for subject in range(1, SUBJECTS + 1) if bucket_of(np.array([subject]), BUCKETS)[0] == 0]
Drawn = tuple[list[Fact], list[Label]]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEWEST_ROWS", 0)
    monkeypatch.setattr(module, "_MOST", 2)


@dataclass
class Night:
    """A release of drawn facts in row groups of some subjects; only its first bucket is looked at."""

    folder: Path

    def tree(self, name: str, drawn: Drawn, splits: dict[int, str] | None = None) -> ReleaseLayout:
        made = cohort(self.folder / name, *drawn, subjects=SUBJECTS)
        tree = ReleaseLayout(made.path.resolve())
        close_stores()
        for path, schema in ((tree.events(0), EVENTS), (tree.timeline(PROFILE, 0), TIMELINES)):
            in_groups(path, schema)
        everyone = {subject: ("train", "tuning")[subject % 2] for subject in range(1, SUBJECTS + 1)} | (splits or {})
        write_scheme_subjects(tree, list(everyone.items()))
        statistics = read_frame(tree.events(0)).select("subject_id").unique().sort("subject_id")
        write_subjects(tree, statistics)
        # Codes and vocabulary are the same every night: what they say is what a task's rules hold.
        if name != "before":
            for path in ("metadata/codes.parquet", f"vocabularies/{PROFILE}/vocabulary.parquet"):
                shutil.copy(self.before.path / path, tree.path / path)
        return tree

    @property
    def before(self) -> ReleaseLayout:
        return ReleaseLayout((self.folder / "before" / "current").resolve())


def in_groups(path: Path, schema: Any) -> None:
    """Writes a file anew, three subjects a row group."""
    frame = read_frame(path)
    ids = frame["subject_id"].unique().sort()
    groups = [frame.filter(pl.col("subject_id").is_in(ids[at : at + 3].implode())) for at in range(0, len(ids), 3)]
    write_tables(path, groups, schema, "a file of row groups")


def write_subjects(tree: ReleaseLayout, statistics: pl.DataFrame) -> None:
    from warehouse.schemas import SUBJECTS as SCHEMA

    lacking = [pl.lit(0, pl.Int64).alias(name) for name in SCHEMA.names if name not in ("subject_id", _MEAN)]
    write_table(tree.subjects(0), statistics.with_columns(*lacking, pl.lit(1.0).alias(_MEAN)), SCHEMA, "subjects")


_MEAN = "mean_interval_days"


def parts_of(tree: ReleaseLayout) -> tuple[list[Params], list[str]]:
    facts = Facts(1, read_manifest(tree.manifest).profiles, {TASK: ENTRY}, SCHEME, PROFILE)
    found = [reading for reading in readings(tree, facts) if "bucket" in reading.params]
    names = dict.fromkeys(str(path) for reading in found for path in reading.inputs)
    return [reading.params for reading in found], list(names)


def anew(tree: ReleaseLayout) -> Tables:
    return {place: frame for params in parts_of(tree)[0] for place, frame in measured(params, tree).items()}


def mended(tree: ReleaseLayout, before: ReleaseLayout, folder: Path) -> Tables | None:
    """What is carried of a tree, where the one before was measured."""
    written = write_measures(anew(before), before)
    parts, inputs = parts_of(tree)
    assert parts_of(before) == (parts, inputs)
    files = frozenset(str(path.relative_to(before.path)) for path in written)
    return carried(parts, inputs, tree, Former(before, {}, files), folder)


def alike(found: Tables | None, expected: Tables) -> None:
    assert found is not None
    assert found.keys() == expected.keys()
    for (area, *_), frame in expected.items():
        names = MEASURES[area].names
        assert found[(area, *_)].select(names).equals(frame.select(names)), (area, *_)


def change(drawn: Drawn, rng: random.Random) -> Drawn:
    """Other facts and labels of a few subjects."""
    facts, labels = drawn
    for subject in rng.sample(HOME, rng.randrange(1, 4)):
        mine = [fact for fact in facts if fact.subject == subject]
        others = [fact for fact in facts if fact.subject != subject]
        edit = rng.randrange(5)
        if edit == 0:
            facts = others
        elif edit == 1 and mine:
            facts = [*others, *mine[:-1]]
        elif edit == 2:
            facts = [*facts, Fact(subject, rng.choice(CODES), rng.randrange(20), rng.randrange(20, 25))]
        elif edit == 3:
            facts = [*others, *(replace(fact, known=fact.known + 9) if fact.known else fact for fact in mine)]
        else:
            labels = [*labels, Label(subject, rng.randrange(24), True)]
    return facts, labels


@pytest.mark.whole  # In `make test` alone: each seed is two releases.
@pytest.mark.parametrize("seed", range(12))
def test_random_changes_give_what_is_measured_anew(seed: int, tmp_path: Path) -> None:
    rng, night = random.Random(seed), Night(tmp_path)
    drawn = draw(seed, SUBJECTS)
    before = night.tree("before", drawn)
    splits = {rng.choice(HOME): "held_out"} if seed % 2 else None
    now = night.tree("now", change(drawn, rng), splits)
    alike(mended(now, before, tmp_path), anew(now))


def test_an_event_that_changed_where_no_stage_says_so_is_measured(tmp_path: Path) -> None:
    """A row group is believed to be as it was for its bytes alone: `contents/` is not even there."""
    night, drawn = Night(tmp_path), draw(3, SUBJECTS)
    before, now = night.tree("before", drawn), night.tree("now", drawn)
    assert not now.contents(0).exists()
    alike(mended(now, before, tmp_path), anew(before))
    events = read_frame(now.events(0))
    row = events.with_row_index().filter(pl.col("code") == CODES[4])["index"][0]
    other = pl.when(pl.int_range(pl.len()) == row).then(pl.lit(CODES[5])).otherwise("code").alias("code")
    write_tables(now.events(0), [events.with_columns(other)], EVENTS, "events")
    in_groups(now.events(0), EVENTS)
    files = [SubjectsFile.read(tree.events(0)) for tree in (now, before)]
    changed = changed_subjects(*files)
    assert changed is not None and changed.tolist() == [events["subject_id"][row]]
    found = mended(now, before, tmp_path)
    alike(found, anew(now))
    assert found is not None and not found["counts", "0000"].equals(anew(before)["counts", "0000"])


def test_a_stale_row_group_of_a_changed_subject_is_measured_as_it_lies_there(tmp_path: Path) -> None:
    """As a stage splices it that should have made it anew: timelines have a token of an event that is gone."""
    night, (facts, labels) = Night(tmp_path), draw(5, SUBJECTS)
    asked = {label.subject for label in labels if label.time > 20 and label.subject in HOME}
    subject = next(fact.subject for fact in facts if fact.code in CODES and fact.subject in asked)
    gone = next(fact for fact in facts if fact.subject == subject and fact.code in CODES)
    before = night.tree("before", (facts, labels))
    now = night.tree("now", ([fact for fact in facts if fact is not gone], labels))
    right = anew(now)
    shutil.copy(before.timeline(PROFILE, 0), now.timeline(PROFILE, 0))
    found = mended(now, before, tmp_path)
    alike(found, anew(now))
    assert found is not None and not found["counts", "probes-0000"].equals(right["counts", "probes-0000"])


def rows_apart(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([frame.tail(1), frame.head(frame.height - 1)])


def another_type(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("numeric_value").cast(pl.Float64))


@pytest.mark.parametrize("edit", [rows_apart, another_type])
def test_what_is_not_of_some_subjects_alone_is_measured_anew(
    edit: Callable[[pl.DataFrame], pl.DataFrame], tmp_path: Path
) -> None:
    night, drawn = Night(tmp_path), draw(7, SUBJECTS)
    before, now = night.tree("before", drawn), night.tree("now", drawn)
    table = edit(read_frame(now.events(0))).to_arrow()
    schema = EVENTS if edit is rows_apart else table.schema
    now.events(0).unlink()
    pq.write_table(table.cast(schema), now.events(0))
    assert mended(now, before, tmp_path) is None


def test_an_item_that_a_row_of_another_subject_names_has_the_bucket_measured_anew(tmp_path: Path) -> None:
    """A token is judged by the events of its item, whoever has them."""
    night, (facts, labels) = Night(tmp_path), draw(2, SUBJECTS)
    images = [fact for fact in facts if fact.key is not None and fact.subject in HOME]
    image = images[0]
    other = next(fact for fact in images if fact.subject != image.subject)
    facts = [replace(fact, key=image.key, modality=image.modality) if fact is other else fact for fact in facts]
    before = night.tree("before", (facts, labels))
    later = [replace(fact, known=24, time=23) if fact is image else fact for fact in facts]
    now = night.tree("now", (later, labels))
    assert mended(now, before, tmp_path) is None


def test_former_measures_that_are_not_what_was_published_are_not_believed(tmp_path: Path) -> None:
    """Nor are those that give more for the changed subjects than there was of all."""
    night, (facts, labels) = Night(tmp_path), draw(4, SUBJECTS)
    before = night.tree("before", (facts, labels))
    path = next(path for path in write_measures(anew(before), before) if path.parent.name == "counts")
    name = str(path.relative_to(before.path))
    entry = FileEntry(sha256=sha256_file(path), bytes=path.stat().st_size)
    said = {"path": str(before.path), "files": {name: entry.model_dump(mode="json")}, "counts": {}}
    assert whole_former(said) is not None
    counts = read_frame(path)
    write_table(path, counts.with_columns(pl.col("count") + 1), MEASURES["counts"], "counts")
    assert whole_former(said) is None

    now = night.tree("now", ([fact for fact in facts if fact.subject != facts[0].subject], labels))
    assert mended(now, before, tmp_path) is not None
    less = Former(before, {}, frozenset(str(p.relative_to(before.path)) for p in before.measured.rglob("*.parquet")))
    write_table(path, counts.with_columns(pl.lit(0, pl.Int64).alias("count")), MEASURES["counts"], "counts")
    parts, inputs = parts_of(now)
    assert carried(parts, inputs, now, less, tmp_path) is None
