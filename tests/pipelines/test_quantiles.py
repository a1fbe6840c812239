"""Numbers as quantiles: fitted on train, frozen, looked up in one way; and a vocabulary that only grows."""

import json
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import count, tokenize, vocabulary
from pipelines.align import CODE_COUNTS
from pipelines.carrying import subjects
from pipelines.carrying.subjects import Changes
from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.former import Former
from pipelines.engine.local import LocalEngine
from pipelines.profiles import built_in
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.values import Breaks, fit
from pipelines.split import SUBJECT_SPLITS
from tests.support.tokens.contents import write_contents
from tests.support.tokens.timelines import events, fitted, named_tokens
from warehouse.errors import TimeloomError
from warehouse.files import xxh3_file
from warehouse.layout import ReleaseLayout
from warehouse.manifest import FileEntry, Manifest, TaskEntry
from warehouse.parquet import empty_frame, read_frame, write_table
from warehouse.schemas import EVENTS, ITEMS, SPLIT_QUARANTINE
from warehouse.vocabulary import QUANTILES

NOON = datetime(2020, 6, 1, 12)
NO_BREAKS = empty_frame(QUANTILES)
RULES: dict[str, Any] = {"codes": {"LOINC": {"values": True}}, "min_values": 1}
PAIR, FUSED = built_in("mehrt-paper", values="pair", **RULES), built_in("mehrt-paper", values="fused", **RULES)


def counted(values: list[float], code: str = "LOINC/1", unit: str | None = "mg") -> pl.DataFrame:
    frame = pl.DataFrame({"value": pl.Series(values, dtype=pl.Float32)})
    named = frame.select(pl.lit(code).alias("code"), pl.lit(unit, pl.String).alias("unit"), "value")
    return named.group_by(pl.all()).agg(pl.len().cast(pl.Int64).alias("count"))


NUMBERS = st.lists(st.sampled_from([0.0, -1.5, 0.1, 2.0, 2.5, 1e6, 7.0]) | st.floats(-100, 100, width=32), min_size=1)


@settings(max_examples=150, deadline=None)
@given(NUMBERS, st.integers(2, 20), st.randoms())
def test_breaks_are_numpys_quantiles_whatever_the_order(values: list[float], bins: int, chance: random.Random) -> None:
    frame = counted(values)
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=chance.randrange(1 << 30))
    # Each bucket counts alone, so equal values come in several rows.
    halves = pl.concat([shuffled, shuffled]).with_columns(pl.col("count"))
    fitted_breaks = fit(halves, NO_BREAKS, bins, 1)["breaks"][0].to_list()
    doubled = np.sort(np.repeat(np.float32(values).astype(np.float64), 2))
    expected = np.unique(np.quantile(doubled, np.arange(1, bins) / bins))
    assert np.allclose(np.unique(fitted_breaks), expected, rtol=1e-12, atol=1e-12)
    assert fitted_breaks == sorted(set(fitted_breaks))


@settings(max_examples=150, deadline=None)
@given(NUMBERS, st.lists(st.floats(-100, 100), min_size=1, max_size=40).map(lambda cuts: sorted(set(cuts))))
def test_a_bin_is_the_number_of_breaks_below(values: list[float], breaks: list[float]) -> None:
    other = [[0.0], breaks, [1.0, 2.0, 3.0]]
    frame = pl.DataFrame(
        {"code": ["a", "b", "c"], "unit": [None, "x", "x"], "breaks": other, "train_values": [1, 1, 1]}
    )
    numbers = np.float32([*values, *breaks])
    found = Breaks(frame).bins(numbers, np.ones(len(numbers), np.int64))
    assert found.tolist() == [sum(cut < float(value) for cut in breaks) for value in numbers]


def test_known_breaks_stay_and_new_ones_come_behind() -> None:
    first = fit(counted([1, 2, 3]), NO_BREAKS, 4, 1)
    again = fit(pl.concat([counted([50, 60, 70]), counted([5], unit=None), counted([1], "A/1")]), first, 4, 1)
    assert again[:1].equals(first)
    assert again.select("code", "unit").rows() == [("LOINC/1", "mg"), ("A/1", "mg"), ("LOINC/1", None)]


def test_too_few_values_have_no_breaks_until_there_are_enough() -> None:
    assert fit(counted([1.0] * 10), NO_BREAKS, 4, 11).is_empty()
    assert len(fit(counted([1.0] * 11), NO_BREAKS, 4, 11)) == 1


# --- in timelines


def lab(value: float | None, hour: int = 0, **more: Any) -> dict[str, Any]:
    return {"code": "LOINC/1", "time": NOON + timedelta(hours=hour), "unit": "mg", "numeric_value": value, **more}


TRAIN = events(*[lab(float(hour), hour) for hour in range(1, 12)])
WORDS, BREAKS, _ = fitted(TRAIN, PAIR)


def tokens_of(*rows: dict[str, Any], profile: ProfileConfig = PAIR) -> list[str]:
    words, breaks = (WORDS, BREAKS) if profile is PAIR else fitted(TRAIN, profile)[:2]
    return named_tokens(events(*rows), profile, vocabulary=words, quantiles=breaks)["token"].to_list()[1:]


def test_a_value_equal_to_a_break_falls_below_it() -> None:
    assert BREAKS["breaks"][0].to_list() == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert tokens_of(lab(2.0)) == ["LOINC/1", "VALUE/Q1"]
    assert tokens_of(lab(2.001)) == ["LOINC/1", "VALUE/Q2"]
    assert tokens_of(lab(-99)) == ["LOINC/1", "VALUE/Q1"]
    assert tokens_of(lab(99)) == ["LOINC/1", "VALUE/Q10"]


def test_no_value_is_no_quantile() -> None:
    assert tokens_of(lab(None)) == ["LOINC/1"]
    assert tokens_of(lab(float("nan"))) == ["LOINC/1"]
    assert tokens_of(lab(None), profile=FUSED) == ["LOINC/1"]


@pytest.mark.parametrize(
    ("flag", "token"),
    [("<", "VALUE/Q1"), ("<=", "VALUE/Q1"), (None, "VALUE/Q1"), (">=", "VALUE/Q1"), (">", "VALUE/Q2")],
)
def test_censored_values(flag: str | None, token: str) -> None:
    assert tokens_of(lab(2.0, value_flag=flag)) == ["LOINC/1", token]


def test_units_have_breaks_of_their_own_and_so_has_none() -> None:
    several = [
        lab(float(number), number, unit=unit)
        for unit, scale in (("g", 0), (None, 100))
        for number in range(scale, scale + 4)
    ]
    words, breaks, _ = fitted(events(*several), PAIR)
    assert breaks.select("code", "unit").rows() == [("LOINC/1", None), ("LOINC/1", "g")]
    rows = events(lab(3.0, 0, unit="g"), lab(100.0, 1, unit=None), lab(3.0, 2, unit="other"))
    made = named_tokens(rows, PAIR, vocabulary=words, quantiles=breaks)["token"].to_list()[1:]
    # A unit that train does not have gives no value token, not the token of another unit.
    assert made == ["LOINC/1", "VALUE/Q10", "LOINC/1", "VALUE/Q1", "LOINC/1"]


def test_fused_values_are_one_token() -> None:
    assert tokens_of(lab(2.5), lab(11.0, 1), profile=FUSED) == ["LOINC/1//Q2", "LOINC/1//Q10"]
    words, _, _ = fitted(TRAIN, FUSED)
    # Every bin has an id from the first night on, even if train has no value in it.
    assert set(words["token"]) >= {f"LOINC/1//Q{number}" for number in range(1, 11)} | {"LOINC/1"}
    assert words.filter(pl.col("token") == "LOINC/1")["train_count"].item() == 0


def test_only_train_decides() -> None:
    held = [lab(float(hour * 1000), hour, subject_id=2) for hour in range(1, 12)]
    both = pl.concat([TRAIN, events(*held)])
    words, breaks, _ = fitted(both, PAIR, splits={1: "train", 2: "held_out"})
    assert breaks.equals(BREAKS)
    assert words.equals(WORDS)
    # The same check finds a difference if the other subject is in train too.
    assert not fitted(both, PAIR, splits={1: "train", 2: "train"})[1].equals(BREAKS)


# --- nights: plans and stages over releases


class Nights:
    """Releases of one profile, one after the other."""

    def __init__(self, base: Path, profile: ProfileConfig) -> None:
        self.base, self.profile, self.number = base, profile, 0
        self.previous: Manifest | None = None
        self.files: dict[str, FileEntry] = {}
        self.tasks: dict[str, TaskEntry] = {}

    def run(self, buckets: dict[int, pl.DataFrame], splits: dict[int, str], **keys: Any) -> set[str]:
        """A night; gives the keys of the tokenize tasks that had to run."""
        self.number += 1
        self.profile = self.profile.model_copy(update=keys)
        before = self.base / str(self.number - 1) / "release"
        context = RunContext(LocalEngine(1), self.base / str(self.number), self.previous, before)
        self.tree = tree = ReleaseLayout(context.staging / "release")
        for bucket, frame in buckets.items():
            write_table(tree.events(bucket), frame, EVENTS, "events")
            write_table(tree.items(bucket), ITEMS.empty_table(), ITEMS, "items")
            counts = frame.group_by("code").agg(pl.len().cast(pl.Int64).alias("events")).sort("code")
            write_table(tree.codes_of(bucket), counts, CODE_COUNTS, "codes")
            write_contents(tree, bucket, frame)
        assigned = pl.DataFrame(list(splits.items()), schema=["subject_id", "split"], orient="row")
        scheme = self.profile.scheme
        path = tree.subject_splits if scheme is None else tree.scheme_subjects(scheme)
        write_table(path, assigned, SUBJECT_SPLITS, "splits")
        everyone = pl.concat([frame.select("subject_id") for frame in buckets.values()]).unique()
        aside = everyone.join(assigned, on="subject_id", how="anti").with_columns(pl.lit("by hand").alias("reason"))
        write_table(tree.split_quarantine(str(scheme)), aside, SPLIT_QUARANTINE, "subjects set aside")
        inputs = {bucket: str(frame.hash_rows(1, 2, 3, 4).to_list()) for bucket, frame in buckets.items()}
        hashes = {bucket: str(sorted(splits.items())) for bucket in buckets}
        counts = self._carry_out(count.tasks_of(context, "p", self.profile, inputs, hashes, {}))
        self._carry_out([vocabulary.task_of(context, "p", self.profile, counts)])
        tasks = tokenize.tasks_of(context, "p", self.profile, inputs, {})
        known = {key: task.fingerprint for key, task in self.tasks.items()}
        stale = {task.key for task in tasks if known.get(f"tokenize/{task.key}") != task.fingerprint}
        self._carry_out(tasks)
        self.previous = Manifest.model_construct(files=dict(self.files), tasks=dict(self.tasks))
        return stale

    def _carry_out(self, tasks: list[Any]) -> StageReport:
        report = StageReport("stage")
        for task in tasks:
            module = {"count": count.run, "vocabulary": vocabulary.run, "tokenize": tokenize.run}[task.stage]
            result = module(task.params, Path(task.base))
            files = {path: self._entry(path, rows) for path, rows in result.files.items()}
            entry = TaskEntry(fingerprint=task.fingerprint, files=files, counts=result.counts)
            report.entries[task.key] = self.tasks[f"{task.stage}/{task.key}"] = entry
            self.files |= files
        return report

    def _entry(self, path: str, rows: int | None) -> FileEntry:
        """Of other bytes each night, as far as anybody can tell by SHA-256."""
        file = self.tree.path / path
        size = file.stat().st_size
        return FileEntry(sha256=f"{path}{self.number}", bytes=size, rows=rows, xxh3=xxh3_file(file))

    @property
    def words(self) -> pl.DataFrame:
        return read_frame(self.tree.vocabulary("p"))

    @property
    def breaks(self) -> pl.DataFrame:
        return read_frame(self.tree.quantiles("p"))


SECOND = events(*[lab(float(hour), hour, subject_id=2, code="LOINC/2") for hour in range(1, 6)])
SPLITS = {1: "train", 2: "train", 3: "train"}


@pytest.mark.whole
@pytest.mark.parametrize("profile", [PAIR, FUSED, PAIR.model_copy(update={"values": "codes_only"})])
def test_a_new_code_in_one_bucket_leaves_the_others_alone(tmp_path: Path, profile: ProfileConfig) -> None:
    nights = Nights(tmp_path, profile)
    assert nights.run({0: TRAIN, 1: SECOND}, SPLITS) == {"p-0000", "p-0001"}
    words, breaks = nights.words, nights.breaks
    assert nights.run({0: TRAIN, 1: SECOND}, SPLITS) == set()
    more = pl.concat([SECOND, events(*[lab(float(hour), hour, subject_id=3, code="LOINC/3") for hour in range(9)])])
    assert nights.run({0: TRAIN, 1: more}, SPLITS) == {"p-0001"}
    assert nights.words[: len(words)].select("token_id", "token").equals(words.select("token_id", "token"))
    assert len(nights.words) > len(words)
    assert nights.breaks[: len(breaks)].equals(breaks)


def test_who_has_no_split_gets_the_tokens_that_others_bring(tmp_path: Path) -> None:
    nights = Nights(tmp_path, PAIR)
    nobody = events(lab(None, code="LOINC/9", subject_id=4))
    nights.run({0: pl.concat([TRAIN, nobody]), 1: SECOND}, SPLITS)
    assert "LOINC/9" not in nights.words["token"]
    more = pl.concat([SECOND, events(lab(None, code="LOINC/9", subject_id=3))])
    assert nights.run({0: pl.concat([TRAIN, nobody]), 1: more}, SPLITS) == {"p-0000", "p-0001"}
    ids = read_frame(nights.tree.timeline("p", 0)).filter(pl.col("subject_id") == 4)["token_id"]
    assert nights.words.filter(pl.col("token") == "LOINC/9")["token_id"].item() in ids


@pytest.mark.parametrize("profile", [PAIR, FUSED])
def test_counts_of_a_bucket_are_mended_by_who_changed(
    tmp_path: Path, profile: ProfileConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "FEWEST_ROWS", 0)
    nights = Nights(tmp_path, profile.model_copy(update={"scheme": "s"}))
    third = [lab(float(hour), hour, code="LOINC/3", subject_id=3) for hour in range(4)]
    nights.run({0: pl.concat([TRAIN, SECOND, events(*third)])}, SPLITS)
    former = Former(nights.tree, nights.tasks["count/p-0000"].counts)
    # The last one had a code that nobody has any more, and has one that nobody had.
    other = [lab(float(hour), hour, code="LOINC/4", subject_id=3) for hour in range(4)]
    nights.run({0: pl.concat([TRAIN, SECOND, events(*other)])}, SPLITS)
    paths = [nights.tree.token_counts("p", 0), count.values_path(nights.tree, "p", 0)]
    anew = [path.read_bytes() for path in paths], nights.tasks["count/p-0000"].counts
    for path in paths:
        path.unlink()
    params = count.Params(bucket=0, profile="p", settings=nights.profile.model_dump(mode="json"), stores={})
    assert Changes.of(nights.tree, former.tree, 0, stores={}, scheme="s") == Changes(*[np.array([3])] * 2)
    result = count.run(params, nights.tree.path, former)
    assert ([path.read_bytes() for path in paths], result.counts) == anew


def test_breaks_are_frozen_while_values_drift(tmp_path: Path) -> None:
    nights = Nights(tmp_path, PAIR)
    nights.run({0: TRAIN}, SPLITS)
    breaks = nights.breaks
    drifted = pl.concat([TRAIN, events(*[lab(float(1000 + hour), hour, subject_id=3) for hour in range(50)])])
    nights.run({0: drifted}, SPLITS)
    assert nights.breaks.equals(breaks)
    # A higher version is a refit: new ids, new breaks.
    assert nights.run({0: drifted}, SPLITS, vocabulary_version=2) == {"p-0000"}
    assert not nights.breaks.equals(breaks)
    assert json.loads(vocabulary.record_path(nights.tree, "p").read_text())["version"] == 2
    with pytest.raises(TimeloomError, match="has version 2"):
        nights.run({0: drifted}, SPLITS, vocabulary_version=1)


@pytest.mark.whole
def test_a_refit_forgets_what_is_gone(tmp_path: Path) -> None:
    nights = Nights(tmp_path, PAIR)
    nights.run({0: TRAIN, 1: SECOND}, SPLITS)
    nights.run({0: TRAIN}, SPLITS)
    assert "LOINC/2" in nights.words["token"]
    nights.run({0: TRAIN}, SPLITS, vocabulary_version=2)
    assert "LOINC/2" not in nights.words["token"]


@pytest.mark.parametrize("keys", [{"scheme": "other"}, {"quantiles": 4}])
def test_a_vocabulary_is_not_taken_over_for_other_splits_or_quantiles(tmp_path: Path, keys: dict[str, Any]) -> None:
    nights = Nights(tmp_path, PAIR)
    nights.run({0: TRAIN}, SPLITS)
    (name,) = keys
    with pytest.raises(TimeloomError, match=f"was fitted with {name}") as refused:
        nights.run({0: TRAIN}, SPLITS, **keys)
    assert "vocabulary_version" in refused.value.remedy


def test_the_most_frequent_codes_of_train_stay(tmp_path: Path) -> None:
    rules = built_in("mehrt-paper", codes={"LOINC": {"top": 2}})
    often = [("A", 3), ("B", 2), ("C", 2), ("D", 9)]
    rows = [lab(None, hour, code=f"LOINC/{code}") for code, times in often for hour in range(times)]
    frame, held = events(*rows[:7]), events(*[row | {"subject_id": 2} for row in rows[7:]])
    nights = Nights(tmp_path, rules)
    nights.run({0: frame, 1: held}, {1: "train", 2: "held_out"})
    # D is the most frequent, but not in train; B and C are equal, and B comes first.
    assert nights.words["token"].to_list()[-2:] == ["LOINC/A", "LOINC/B"]
    coverage = read_frame(nights.tree.coverage("p")).filter(pl.col("outcome") == "dropped")
    assert coverage.select("split", "reason", "count").rows() == [
        ("held_out", "not_among_top", 9), ("train", "not_among_top", 2),
    ]  # fmt: skip
    assert read_frame(nights.tree.timeline("p", 1)).height == 1
    later = pl.concat([frame, events(*[row | {"subject_id": 3} for row in rows[7:]])])
    nights.run({0: later}, {1: "train", 3: "train"})
    assert nights.words["token"].to_list()[-2:] == ["LOINC/A", "LOINC/B"]


def test_a_fused_token_takes_no_place_among_the_top(tmp_path: Path) -> None:
    rules = built_in("mehrt-paper", values="fused", min_values=1, codes={"LOINC": {"values": True, "top": 20}})
    nights = Nights(tmp_path, rules)
    nights.run({0: TRAIN, 1: SECOND}, SPLITS)
    third = events(*[lab(float(hour), hour, subject_id=3, code="LOINC/3") for hour in range(5)])
    nights.run({0: TRAIN, 1: SECOND, 2: third}, SPLITS)
    assert {"LOINC/1", "LOINC/2", "LOINC/3"} <= set(nights.words["token"])


def test_what_is_not_finite_is_no_number() -> None:
    with_infinity = pl.concat([TRAIN, events(lab(float("inf"), 40), lab(float("-inf"), 41))])
    assert fitted(with_infinity, PAIR)[1].equals(BREAKS)
    assert tokens_of(lab(float("inf")), lab(float("-inf"), 1)) == ["LOINC/1", "LOINC/1"]
    largest = lab(float(np.finfo(np.float32).max), value_flag=">")
    assert np.isfinite(fitted(events(largest, lab(1.0, 1)), PAIR)[1]["breaks"][0].to_numpy()).all()


def test_a_code_that_train_does_not_have_is_not_among_the_top(tmp_path: Path) -> None:
    nights = Nights(tmp_path, built_in("mehrt-paper", codes={"LOINC": {"top": 5}}))
    held = events(lab(None, code="LOINC/A", subject_id=2), lab(None, code="LOINC/B", subject_id=2))
    nights.run({0: events(lab(None, code="LOINC/A")), 1: held}, {1: "train", 2: "held_out"})
    coverage = read_frame(nights.tree.coverage("p")).filter(pl.col("split") == "held_out")
    assert coverage.select("outcome", "reason", "count").rows() == [("dropped", "not_among_top", 1), ("token", "", 1)]
    assert read_frame(nights.tree.timeline("p", 1)).height == 2


def test_coverage_counts_what_became_of_every_event(tmp_path: Path) -> None:
    held = events(
        lab(1.0, 0, subject_id=2, unit="g"), lab(5.0, 1, subject_id=2, code="LOINC/9"),
        lab(5.0, 2, subject_id=2, code="VITAL/HR"), lab(5.0, 3, subject_id=2),
    )  # fmt: skip
    nights = Nights(tmp_path, PAIR)
    nights.run({0: TRAIN, 1: held}, {1: "train", 2: "held_out"})
    coverage = read_frame(nights.tree.coverage("p"))
    assert coverage.filter(pl.col("split") == "held_out").drop("split").rows() == [
        ("LOINC", "dropped", "value_without_quantiles", 2),
        ("LOINC", "token", "", 2),
        ("LOINC", "unknown", "", 1),
        ("VALUE", "token", "", 1),
        ("VITAL", "dropped", "namespace_not_in_profile", 1),
    ]
    made = nights.tasks["tokenize/p-0001"].counts
    assert made == {"tokens": 5, "unknown": 1, "largest_id": made["largest_id"], "values_without_quantiles": 2}
    assert made["largest_id"] == read_frame(nights.tree.timeline("p", 1))["token_id"].max()


def test_a_subject_without_a_split_counts_nowhere(tmp_path: Path) -> None:
    nights = Nights(tmp_path, PAIR)
    nights.run({0: TRAIN, 1: SECOND}, {1: "train"})
    assert "LOINC/2" not in nights.words["token"]
    assert set(read_frame(nights.tree.coverage("p"))["split"]) == {"train"}
    assert read_frame(nights.tree.timeline("p", 1)).height > 0
