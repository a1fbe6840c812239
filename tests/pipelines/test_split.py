"""The stage split: its files, several schemes, a ledger that was changed by hand, merged ids."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.deid import SYNTHETIC_KEY, DeidConfig, Deidentifier
from pipelines import split
from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.local import LocalEngine
from pipelines.engine.run_stage import run_stage
from pipelines.splitting.ledger import INHERITED
from pipelines.splitting.merges import ACROSS_SPLITS, components, read_merges
from pipelines.splitting.schemes import SplitConfig
from tests.support.tokens.populations import population
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file
from warehouse.hashing import bucket_of
from warehouse.layout import ReleaseLayout
from warehouse.manifest import FileEntry, TaskEntry
from warehouse.parquet import read_frame, write_table
from warehouse.schemas import SUBJECTS

MEHRT = SplitConfig(train=0.85, tuning=0.05, held_out=0.10)
EVEN = SplitConfig(train=0.5, tuning=0.25, held_out=0.25)
SCHEMES = {"mehrt": MEHRT, "even": EVEN}
FILES = ("freeze.json", "ledger.parquet", "quarantined.parquet", "subjects.parquet")
OTHER = "is not what runs have written"


class _Manifest:
    """As much of a manifest as a task looks at."""

    def __init__(self, tree: Path) -> None:
        paths = [path for path in tree.rglob("*") if path.is_file()]
        self.files = {
            str(path.relative_to(tree)): FileEntry(sha256=sha256_file(path), bytes=path.stat().st_size)
            for path in paths
        }
        self.tasks: dict[str, TaskEntry] = {}


def night(
    folder: Path,
    subjects: pl.DataFrame,
    *,
    before: ReleaseLayout | None = None,
    schemes: dict[str, SplitConfig] = SCHEMES,
    merges: list[tuple[int, int]] | None = None,
    buckets: int = 3,
) -> tuple[ReleaseLayout, StageReport]:
    """One run of the stage; the release before is what lies in `before`, with a manifest made of it."""
    tree = ReleaseLayout(folder / "release")
    home = bucket_of(subjects["subject_id"].to_numpy(), buckets)
    files = {}
    for bucket in range(buckets):
        path = tree.subjects(bucket)
        rows = write_table(path, subjects.filter(pl.Series(home == bucket)), SUBJECTS, "subjects")
        files[str(path.relative_to(tree.path))] = FileEntry(sha256=sha256_file(path), bytes=1, rows=rows)
    context = RunContext(
        engine=LocalEngine(1),
        staging=folder,
        previous=_Manifest(before.path) if before else None,  # type: ignore[arg-type]
        previous_path=before.path if before else None,
    )
    aligned = StageReport("align", entries={"all": TaskEntry(fingerprint="", files=files)})
    pairs = None if merges is None else pl.DataFrame(merges, schema={"old": pl.Int64, "new": pl.Int64}, orient="row")
    tasks = split.tasks_of(context, schemes, aligned, merges=pairs)
    return tree, run_stage(split.STAGE, tasks, context)


def splits_of(tree: ReleaseLayout, scheme: str = "mehrt") -> dict[int, str]:
    return dict(read_frame(tree.scheme_subjects(scheme)).select("subject_id", "split").iter_rows())


def test_every_scheme_has_its_own_files_and_the_first_is_the_one_that_meds_tools_see(tmp_path: Path) -> None:
    tree, report = night(tmp_path, population(500))
    assert [sorted(report.entries[name].files) for name in SCHEMES] == [
        [
            *(["metadata/subject_splits.parquet"] if name == "mehrt" else []),
            *(f"splits/{name}/{file}" for file in FILES),
        ]
        for name in SCHEMES
    ]  # fmt: skip
    assert report.entries["mehrt"].counts["subjects"] == {"train": 425, "tuning": 25, "held_out": 50}
    assert report.entries["even"].counts["subjects"] == {"train": 250, "tuning": 125, "held_out": 125}
    of = read_frame(tree.scheme_subjects("mehrt"))
    assert read_frame(tree.subject_splits).equals(of.select("subject_id", "split"))
    assert of["subject_id"].is_sorted() and of["order"].is_unique().all()
    assert read_frame(tree.split_quarantine("mehrt")).is_empty()


def test_another_first_scheme_moves_nobody(tmp_path: Path) -> None:
    subjects = population(100)
    first, _ = night(tmp_path / "1", subjects)
    second, _ = night(tmp_path / "2", subjects, before=first, schemes={"even": EVEN, "mehrt": MEHRT})
    assert splits_of(second) == splits_of(first)
    assert dict(read_frame(second.subject_splits).iter_rows()) == splits_of(first, "even")


def test_the_bytes_do_not_depend_on_the_order_of_rows_or_the_number_of_buckets(tmp_path: Path) -> None:
    subjects = population(200)
    trees = [
        night(tmp_path / str(buckets), subjects.sample(fraction=1, shuffle=True, seed=buckets), buckets=buckets)[0]
        for buckets in (1, 7)
    ]
    for name in ("ledger.parquet", "freeze.json", "subjects.parquet"):
        first, second = ((tree.path / "splits" / "mehrt" / name).read_bytes() for tree in trees)
        assert first == second
    assert trees[0].subject_splits.read_bytes() == trees[1].subject_splits.read_bytes()


def test_nights_append_and_those_who_are_gone_stay_in_the_ledger(tmp_path: Path) -> None:
    subjects = population(200)
    more = pl.concat([subjects[50:], population(100, seed=9, first=9_000).with_columns(pl.col("events") * 100)])
    first, _ = night(tmp_path / "1", subjects)
    second, report = night(tmp_path / "2", more, before=first, buckets=5)
    third, _ = night(tmp_path / "3", pl.concat([subjects, more[150:]]), before=second)
    old, new, last = (read_frame(tree.split_ledger("mehrt")) for tree in (first, second, third))
    assert new[:200].equals(old) and len(new) == 300 and last.equals(new)
    assert report.entries["mehrt"].counts["new"] == 100
    assert len(splits_of(second)) == 250
    known = dict(new.select("subject_id", "split").iter_rows())
    assert all(known[subject] == name for tree in (first, second, third) for subject, name in splits_of(tree).items())
    freezes = [json.loads(tree.split_freeze("mehrt").read_text()) for tree in (first, second, third)]
    assert freezes[0]["edges"] == freezes[1]["edges"]
    assert [len(freeze["nights"]) for freeze in freezes] == [1, 2, 2]
    assert freezes[1]["nights"][0]["sha256"] == freezes[0]["sha256"] != freezes[1]["sha256"]
    order = [read_frame(tree.scheme_subjects("mehrt")).select("subject_id", "order") for tree in (first, third)]
    assert order[1].join(order[0], on=["subject_id", "order"]).height == 200


def test_other_fractions_under_the_same_name_are_refused(tmp_path: Path) -> None:
    first, _ = night(tmp_path / "1", population(50))
    with pytest.raises(
        TimeloomError, match="mehrt was frozen with other fractions; give the new fractions a scheme name"
    ):
        night(tmp_path / "2", population(50), before=first, schemes={"mehrt": EVEN})


def test_nobody_at_all_is_no_fault(tmp_path: Path) -> None:
    first, report = night(tmp_path / "1", population(0))
    assert report.entries["mehrt"].counts["subjects"] == {}
    second, _ = night(tmp_path / "2", population(40), before=first)
    assert len(splits_of(second)) == 40


# --- a ledger that was changed by hand


def _of_ledger(edit: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[ReleaseLayout], None]:
    def change(tree: ReleaseLayout) -> None:
        path = tree.split_ledger("mehrt")
        edit(pl.read_parquet(path)).write_parquet(path)

    return change


def _of_freeze(edit: Callable[[dict[str, Any]], None]) -> Callable[[ReleaseLayout], None]:
    def change(tree: ReleaseLayout) -> None:
        frozen = json.loads(tree.split_freeze("mehrt").read_text())
        edit(frozen)
        tree.split_freeze("mehrt").write_text(json.dumps(frozen))

    return change


def _moved(ledger: pl.DataFrame) -> pl.DataFrame:
    first = pl.int_range(pl.len()) == 0
    return ledger.with_columns(pl.when(first).then(pl.lit("held_out")).otherwise("split").alias("split"))


CHANGES: dict[str, tuple[Callable[[ReleaseLayout], None], str]] = {
    "a subject moved": (_of_ledger(_moved), OTHER),
    "a row removed": (_of_ledger(lambda ledger: ledger[:-1]), OTHER),
    "a row added": (_of_ledger(lambda ledger: pl.concat([ledger, ledger[:1]])), OTHER),
    "rows exchanged": (_of_ledger(lambda ledger: ledger.reverse()), OTHER),
    "another stratum": (
        _of_ledger(lambda ledger: ledger.with_columns(pl.lit("none|0|0").alias("stratum"))),
        OTHER,
    ),
    "another id": (_of_ledger(lambda ledger: ledger.with_columns(pl.col("subject_id") + 1)), OTHER),
    "an unknown split": (
        _of_ledger(lambda ledger: ledger.with_columns(pl.lit("test").alias("split"))),
        OTHER,
    ),
    "another checksum": (_of_freeze(lambda frozen: frozen["nights"][0].update(sha256="0")), OTHER),
    "a night removed": (_of_freeze(lambda frozen: frozen["nights"].pop()), OTHER),
    "no freeze": (lambda tree: tree.split_freeze("mehrt").write_text("{"), "splits/mehrt/freeze.json cannot be read"),
    "freeze removed": (lambda tree: tree.split_freeze("mehrt").unlink(), "mehrt has lost its freeze.json"),
    "ledger removed": (lambda tree: tree.split_ledger("mehrt").unlink(), "mehrt has lost its ledger.parquet"),
}  # fmt: skip


@pytest.mark.whole
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_ledger_is_refused_even_with_a_manifest_to_match(tmp_path: Path, name: str) -> None:
    subjects = population(60)
    first, _ = night(tmp_path / "1", subjects)
    change, message = CHANGES[name]
    change(first)
    with pytest.raises(TimeloomError, match=message) as caught:
        night(tmp_path / "2", subjects, before=first)
    assert "\n" not in str(caught.value) and "current" in caught.value.remedy


def test_edges_or_phases_changed_under_the_manifest_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain covers the ledger's rows; the rest of the freeze is held by the manifest's own checksum."""
    first, _ = night(tmp_path / "1", population(60))
    manifest = _Manifest(first.path)
    _of_freeze(lambda frozen: frozen["edges"].update(events=[1.0, 2.0, 3.0]))(first)
    monkeypatch.setattr(f"{__name__}._Manifest", lambda _: manifest)
    with pytest.raises(TimeloomError, match=r"^splits/mehrt/freeze\.json of the current release is damaged; run `tim"):
        night(tmp_path / "2", population(60), before=first)


# --- merged ids


def pair_in(tree: ReleaseLayout, first: str, second: str) -> tuple[int, int]:
    """Two subjects of these splits."""
    by_split = [[subject for subject, name in splits_of(tree).items() if name == wanted] for wanted in (first, second)]
    return by_split[0][0], by_split[1][-1]


def test_ids_merged_across_splits_are_set_aside_and_counted(tmp_path: Path) -> None:
    subjects = population(200)
    first, _ = night(tmp_path / "1", subjects)
    train, held = pair_in(first, "train", "held_out")
    second, report = night(tmp_path / "2", subjects, before=first, merges=[(train, held)])
    aside = read_frame(second.split_quarantine("mehrt"))
    assert sorted(aside.iter_rows()) == sorted([(train, ACROSS_SPLITS), (held, ACROSS_SPLITS)])
    assert report.entries["mehrt"].counts["quarantined"] == {ACROSS_SPLITS: 2}
    expected = {subject: name for subject, name in splits_of(first).items() if subject not in (train, held)}
    assert splits_of(second) == expected
    assert dict(read_frame(second.subject_splits).iter_rows()) == expected
    assert read_frame(second.split_ledger("mehrt")).equals(read_frame(first.split_ledger("mehrt")))
    # the old id is gone: what is left of the person holds facts that were in train
    third, _ = night(
        tmp_path / "3", subjects.filter(pl.col("subject_id") != train), before=second, merges=[(train, held)]
    )
    assert read_frame(third.split_quarantine("mehrt"))["subject_id"].to_list() == [held]
    # nothing is lost for good: without the merge they have their splits back
    fourth, _ = night(tmp_path / "4", subjects, before=third)
    assert splits_of(fourth) == splits_of(first)


def test_ids_merged_within_a_split_stay(tmp_path: Path) -> None:
    subjects = population(200)
    first, _ = night(tmp_path / "1", subjects)
    pair = pair_in(first, "train", "train")
    second, _ = night(tmp_path / "2", subjects, before=first, merges=[pair])
    assert splits_of(second) == splits_of(first)


@pytest.mark.whole
@pytest.mark.parametrize("name", ["train", "tuning", "held_out"])
def test_a_new_id_takes_the_split_of_the_old_one(tmp_path: Path, name: str) -> None:
    subjects = population(200)
    first, _ = night(tmp_path / "1", subjects)
    old = pair_in(first, name, name)[0]
    new = int(population(1, first=5_000)["subject_id"][0])
    renamed = subjects.with_columns(pl.col("subject_id").replace(old, new))
    second, report = night(tmp_path / "2", renamed, before=first, merges=[(old, new)])
    assert splits_of(second)[new] == splits_of(first)[old] == name
    assert report.entries["mehrt"].counts["inherited"] == 1
    assert read_frame(second.split_ledger("mehrt"))["stratum"][-1] == INHERITED
    # and keeps it when the merge is no longer named
    third, _ = night(tmp_path / "3", renamed, before=second)
    assert splits_of(third) == splits_of(second)


def test_new_ids_of_one_person_come_together_over_any_number_of_steps(tmp_path: Path) -> None:
    subjects = population(300)
    chain = subjects["subject_id"][:40].to_list()
    tree, report = night(tmp_path / "1", subjects, merges=list(pairwise(chain)))
    assert len({splits_of(tree)[subject] for subject in chain}) == 1
    assert report.entries["mehrt"].counts["inherited"] == 39
    assert len(splits_of(tree)) == 300


def test_merges_that_name_nobody_change_nothing(tmp_path: Path) -> None:
    subjects = population(100)
    first, _ = night(tmp_path / "1", subjects)
    second, _ = night(tmp_path / "2", subjects, merges=[(1, 2), (2, 3)])
    assert splits_of(second) == splits_of(first)
    empty, _ = night(tmp_path / "3", subjects, merges=[])
    assert splits_of(empty) == splits_of(first)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=25))
def test_persons_are_the_connected_components(pairs: list[tuple[int, int]]) -> None:
    found = dict(components(pl.DataFrame(pairs, schema=["old", "new"], orient="row")).iter_rows())
    expected = {node: {node} for pair in pairs for node in pair}
    for first, second in pairs:
        joined = expected[first] | expected[second]
        for node in joined:
            expected[node] = joined
    assert found == {node: min(group) for node, group in expected.items()}


DEID = DeidConfig(mode="synthetic")


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "merges.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_merges_are_read_as_the_tables_ids_are_and_keep_no_raw_id(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "new,old,when\n RAW-2,RAW-1,2020\nRAW-2 ,RAW-1,2021\nRAW-3,RAW-2,2021\n")
    pairs = read_merges(path, DEID, tmp_path)
    ids = Deidentifier(DEID, SYNTHETIC_KEY).subject_ids(pl.Series(["RAW-1", "RAW-2", "RAW-3"])).to_list()
    assert sorted(pairs.iter_rows()) == sorted([(ids[0], ids[1]), (ids[1], ids[2])])
    kept = DeidConfig(mode="synthetic", subject_ids="keep")
    assert read_merges(write_csv(tmp_path, "old,new\n007, 8\n"), kept, tmp_path).rows() == [(7, 8)]


def test_no_file_of_a_run_holds_a_raw_id(tmp_path: Path) -> None:
    pairs = read_merges(write_csv(tmp_path, "old,new\nSECRET-4711,SECRET-0815\n"), DEID, tmp_path)
    (tmp_path / "merges.csv").unlink()
    night(tmp_path / "1", population(20), merges=pairs.rows())
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"SECRET" not in path.read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the merges merges.csv"),
        ("", "cannot read the merges merges.csv"),
        ("old,other\n1,2\n", "the merges merges.csv have no column new"),
        ("old,new\n1,2\n3,\n", "line 3 of the merges merges.csv lacks a subject id"),
        ("old,new\n1, \n", "line 2 of the merges merges.csv lacks a subject id"),
    ],
)
def test_merges_that_cannot_be_read_are_one_clear_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "merges.csv" if text is None else write_csv(tmp_path, text)
    with pytest.raises(TimeloomError, match=message) as caught:
        read_merges(path, DEID, tmp_path)
    assert caught.value.remedy.startswith("give a CSV with the columns old and new")


# --- what later stages depend on


def test_a_buckets_hash_changes_with_its_own_subjects_alone(tmp_path: Path) -> None:
    tree, _ = night(tmp_path, population(60))
    path = tree.scheme_subjects("mehrt")
    before = split.slice_hashes(path, 3)
    frame = read_frame(path)
    moved = _moved(frame)
    assert frame["split"][0] == "train"
    moved.sample(fraction=1, shuffle=True, seed=1).write_parquet(path)
    after = split.slice_hashes(path, 3)
    changed = int(bucket_of(frame["subject_id"][:1].to_numpy(), 3)[0])
    assert {bucket for bucket in before if before[bucket] != after[bucket]} == {changed}


def test_an_unchanged_night_writes_the_same_bytes(tmp_path: Path) -> None:
    subjects = population(60)
    first, _ = night(tmp_path / "1", subjects)
    second, _ = night(tmp_path / "2", subjects, before=first)
    for name in ("ledger.parquet", "freeze.json", "subjects.parquet", "quarantined.parquet"):
        assert sha256_file(first.path / "splits/mehrt" / name) == sha256_file(second.path / "splits/mehrt" / name)


# --- docs/splits.md

DOCUMENT = (Path(__file__).parents[2] / "docs" / "splits.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, flags=re.M | re.S)


def test_the_documents_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [configuration], [code], [merges] = blocks("yaml"), blocks("python"), blocks("csv")
    raw = yaml.safe_load(configuration)
    schemes = {name: SplitConfig.model_validate(fractions) for name, fractions in raw["splits"].items()}
    pairs = read_merges(write_csv(tmp_path, merges), DeidConfig(mode="synthetic", subject_ids="keep"), tmp_path)
    assert pairs.rows() == [(4711, 815)]
    tree, _ = night(tmp_path / "run", population(400), schemes=schemes, merges=pairs.rows())
    (tmp_path / "warehouse").mkdir()
    (tmp_path / "warehouse" / "current").symlink_to(tree.path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["tenth"]) == 34 and set(names["tenth"]["split"]) == {"train"}


def test_the_document_shows_the_line_that_a_changed_ledger_gets(tmp_path: Path) -> None:
    first, _ = night(tmp_path / "1", population(20))
    _of_ledger(_moved)(first)
    with pytest.raises(TimeloomError) as caught:
        night(tmp_path / "2", population(20), before=first)
    assert str(caught.value) in " ".join(DOCUMENT.split())
