"""Events to tokens: golden vectors, one meaning for each token, demographics, images, a vocabulary of train only."""

import csv
import gzip
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from extractors.events.convert import code_expression
from pipelines import count, tokenize, vocabulary
from pipelines.align import CODE_COUNTS
from pipelines.profiles import built_in, codes_of, pieces_of
from pipelines.profiles.fitting import extend
from pipelines.profiles.rules import ProfileConfig
from pipelines.split import SUBJECT_SPLITS
from tests.support.tokens import timelines
from tests.support.tokens.contents import write_contents
from tests.support.tokens.timelines import left_out, named_tokens, usable
from warehouse.layout import ReleaseLayout
from warehouse.parquet import read_frame, write_table
from warehouse.schemas import EVENTS, ITEMS
from warehouse.tokens import BOS, IMAGE_TOKENS, RESERVED, UNK, TokenType

MEHRT, EVERYTHING = built_in("mehrt-paper"), built_in("mehrt-paper", namespaces=None, left_out=[])
NOON = datetime(2020, 6, 1, 12)

GOLDEN = {
    "ICD10CM/I10": ["ICD10CM/I10"],
    "ICD10CM/R1110": ["ICD10CM/R11", "ICD10CM/4-6/10"],
    "ICD10CM/C50911": ["ICD10CM/C50", "ICD10CM/4-6/911"],
    "ICD10CM/S72001A": ["ICD10CM/S72", "ICD10CM/4-6/001", "ICD10CM/7/A"],
    "ICD10CM/T451X5A": ["ICD10CM/T45", "ICD10CM/4-6/1X5", "ICD10CM/7/A"],
    "ICD10CM/I82C11": ["ICD10CM/I82", "ICD10CM/4-6/C11"],
    "ICD10CM/Z5111": ["ICD10CM/Z51", "ICD10CM/4-6/11"],
    "ICD10PCS/30233N1": ["ICD10PCS/302", "ICD10PCS/4-6/33N", "ICD10PCS/7/1"],
    "ICD9CM/4019": ["ICD9CM/4019"],
    "RXNORM/161": ["RXNORM/161"],
    "LOINC/2160-0": ["LOINC/2160-0"],
    "MEDS_DEATH": ["MEDS_DEATH"],
}


def pieces(code: str) -> list[str]:
    return pieces_of(pl.Series([code]), MEHRT)["token"].to_list()


@pytest.mark.parametrize(("code", "expected"), GOLDEN.items(), ids=GOLDEN)
def test_golden_vectors(code: str, expected: list[str]) -> None:
    assert pieces(code) == expected
    assert codes_of(expected, MEHRT) == [code]


@pytest.mark.parametrize("written", ["R11.10", "r11.10", "R1110", " r1110 ", "R11.1 0"])
def test_any_spelling_of_a_code_is_one_code(written: str) -> None:
    code = pl.DataFrame({"code": [written]}).select(code_expression("ICD10CM/{code:icd}")).item()
    assert pieces(code) == GOLDEN["ICD10CM/R1110"]


def test_pieces_of_many_codes_are_those_of_each(tmp_path: Path) -> None:
    together = pieces_of(pl.Series([*GOLDEN, *GOLDEN]), MEHRT)
    assert dict(together.group_by("code", maintain_order=True).agg("token").iter_rows()) == GOLDEN
    assert together.filter(pl.col("code") == "ICD10CM/S72001A")["piece"].to_list() == [0, 1, 2]


def test_equal_strings_of_different_meaning_are_different_tokens() -> None:
    radiation, neutropenia = pieces("ICD10PCS/D7000ZZ")[0], pieces("ICD10CM/D709")[0]
    assert radiation.endswith("/D70")
    assert neutropenia.endswith("/D70")
    assert radiation != neutropenia
    tail, cancer = pieces("ICD10CM/I82C11")[1], pieces("ICD10CM/C119")[0]
    assert tail.endswith("/C11")
    assert cancer.endswith("/C11")
    assert tail != cancer


@pytest.fixture(scope="module")
def icd10(real_data: Path) -> pl.Series:
    """Every distinct ICD-10 code of the MIMIC demo's dictionaries."""
    codes = set()
    for name, system in (("d_icd_diagnoses", "ICD10CM"), ("d_icd_procedures", "ICD10PCS")):
        path = real_data / "mimic-iv-demo-2.2" / "hosp" / f"{name}.csv.gz"
        if not path.is_file():
            pytest.skip("no mimic-iv-demo-2.2 in the real data")
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            codes |= {
                f"{system}/{row['icd_code'].strip()}" for row in csv.DictReader(file) if row["icd_version"] == "10"
            }
    return pl.Series(sorted(codes))


def test_every_code_of_the_dictionaries_comes_back(icd10: pl.Series) -> None:
    grouped = pieces_of(icd10, MEHRT).group_by("code", maintain_order=True).agg("token")
    assert len(grouped) == len(icd10) > 100_000
    assert codes_of(grouped["token"].explode().to_list(), MEHRT) == grouped["code"].to_list() == icd10.to_list()
    assert set(grouped["token"].list.len().unique()) == {1, 2, 3}


def test_no_token_has_two_meanings_in_the_dictionaries(icd10: pl.Series) -> None:
    found = pieces_of(icd10, MEHRT).with_columns(pl.col("code").str.split("/").list.first().alias("system"))
    meanings = found.group_by("token").agg(pl.struct("system", "piece").n_unique().alias("meanings"))
    assert meanings["meanings"].max() == 1
    # Without the namespaces the same check finds the collisions that make them necessary.
    bare = found.with_columns(pl.col("token").str.split("/").list.last()).group_by("token")
    assert bare.agg(pl.struct("system", "piece").n_unique().alias("meanings"))["meanings"].max() > 1


# --- a subject's tokens


def events(*rows: dict[str, Any]) -> pl.DataFrame:
    return timelines.events(*rows, time=NOON)


def tokens_of(*rows: dict[str, Any], items: pl.Series | None = None, profile: ProfileConfig = MEHRT) -> pl.DataFrame:
    return named_tokens(events(*rows), profile, items)


BIRTH = {"code": "MEDS_BIRTH", "time": datetime(1950, 1, 1), "time_precision": "year"}
SEX = {"code": "DEMO/SEX/F", "time": None}
LAB = {"code": "LOINC/2160-0"}


def test_demographics_stand_at_the_start_without_a_time() -> None:
    rows = tokens_of(LAB, SEX, BIRTH, {"code": "DEMO/ETHNICITY/WHITE", "time": NOON + timedelta(days=3)})
    assert rows["token"].to_list() == ["[BOS]", "DEMO/ETHNICITY/WHITE", "DEMO/SEX/F", "DEMO/AGE/70-79", "LOINC/2160-0"]
    kinds = [TokenType.SPECIAL, *[TokenType.DEMOGRAPHIC] * 3, TokenType.STRUCTURED]
    assert rows["type"].to_list() == kinds
    assert rows["time"].to_list() == [None] * 4 + [NOON]


@pytest.mark.parametrize(
    ("birth", "first", "band"),
    [
        (datetime(2020, 1, 1), datetime(2020, 1, 1), "0-9"),
        (datetime(2010, 3, 1), datetime(2020, 2, 27), "0-9"),
        (datetime(2010, 3, 1), datetime(2020, 3, 3), "10-19"),
        (datetime(1931, 1, 1), datetime(2020, 6, 1), "80-89"),
        (datetime(1930, 1, 1), datetime(2020, 6, 1), "90+"),
        (datetime(1900, 1, 1), datetime(2020, 6, 1), "90+"),
        (datetime(2030, 1, 1), datetime(2020, 6, 1), "0-9"),
    ],
)
def test_age_bands(birth: datetime, first: datetime, band: str) -> None:
    rows = tokens_of(BIRTH | {"time": birth}, LAB | {"time": first + timedelta(days=4000)}, LAB | {"time": first})
    assert rows["token"].to_list()[1] == f"DEMO/AGE/{band}"


@pytest.mark.whole
@pytest.mark.parametrize("weeks", [-104, -1, 1, 30, 104])
def test_age_does_not_hang_on_the_date_shift(weeks: int) -> None:
    for years in (9, 10, 69, 70, 89, 90):
        rows = [BIRTH, LAB | {"time": datetime(1950 + years, 5, 1)}]
        shifted = [row | {"time": row["time"] + timedelta(weeks=weeks)} for row in rows]
        assert tokens_of(*shifted)["token"].to_list() == tokens_of(*rows)["token"].to_list()


def test_no_birth_gives_no_age() -> None:
    assert tokens_of(LAB)["token"].to_list() == ["[BOS]", "LOINC/2160-0"]


def test_repeated_demographics_are_dropped_and_counted() -> None:
    again = [{"code": f"DEMO/ETHNICITY/{group}", "time": NOON + timedelta(days=day)} for day, group in enumerate("BAA")]
    given = events(SEX, SEX | {"subject_id": 2}, LAB, *again)
    rows = named_tokens(given, MEHRT)
    assert rows.filter(pl.col("subject_id") == 1)["token"].to_list() == [
        "[BOS]", "DEMO/ETHNICITY/B", "DEMO/SEX/F", "LOINC/2160-0",
    ]  # fmt: skip
    assert rows.filter(pl.col("subject_id") == 2)["token"].to_list() == ["[BOS]", "DEMO/SEX/F"]
    assert left_out(given, MEHRT) == [("DEMO", "repeated_demographic", 2)]


def test_what_the_profile_leaves_out_is_counted_by_namespace() -> None:
    rows = events(LAB, {"code": "VITAL/HR"}, {"code": "VITAL/HR"}, BIRTH)
    assert left_out(rows, MEHRT) == [
        ("MEDS_BIRTH", "becomes_age", 1), ("VITAL", "namespace_not_in_profile", 2),
    ]  # fmt: skip
    assert named_tokens(rows, EVERYTHING)["token"].to_list().count("VITAL/HR") == 2


def image(key: str, modality: str = "ct", **more: Any) -> dict[str, Any]:
    return {
        "code": f"IMAGE/{modality.upper()}",
        "kind": "image",
        "item_key": key,
        "source": f"images/{modality}",
        **more,
    }


def test_images_stand_after_the_structured_tokens_of_their_moment() -> None:
    later = {"code": "ICD10CM/Z5111", "time": NOON + timedelta(seconds=1)}
    given = [
        image("k2", "wsi"),
        image("k1"),
        LAB | {"code": "RXNORM/999"},
        later,
        {"code": "MEDS_DEATH", "kind": "death"},
    ]
    rows = tokens_of(*given, items=usable("k1", "k2"))
    assert rows["token"].to_list()[1:] == [
        "RXNORM/999", "MEDS_DEATH", "[CT]", "[WSI]", "ICD10CM/Z51", "ICD10CM/4-6/11",
    ]  # fmt: skip
    assert rows["item_key"].to_list()[1:] == [None, None, "k1", "k2", None, None]
    assert rows["type"].to_list()[3:5] == [TokenType.IMAGE] * 2


def test_an_image_stands_after_a_dated_fact_that_becomes_available_at_its_moment() -> None:
    dated = {"code": "ICD10PCS/30233N1", "time": datetime(2020, 5, 1, 23, 59, 59, 999_999), "time_precision": "day"}
    rows = tokens_of(dated | {"available_time": NOON}, image("k"), items=usable("k"))
    assert rows["token"].to_list()[-1] == "[CT]"


def test_only_images_with_verdict_ok_become_tokens() -> None:
    given = events(image("good"), image("bad"), LAB)
    rows = named_tokens(given, MEHRT, usable("good"))
    assert rows.drop_nulls("item_key")["item_key"].to_list() == ["good"]
    assert left_out(given, MEHRT, usable("good")) == [("IMAGE", "image_without_vector", 1)]


def test_tokens_follow_availability_or_time_as_the_profile_says() -> None:
    late = {"code": "LOINC/1-1", "available_time": NOON + timedelta(days=2)}
    other = {"code": "LOINC/2-2", "time": NOON + timedelta(days=1)}
    assert tokens_of(late, other)["token"].to_list()[1:] == ["LOINC/2-2", "LOINC/1-1"]
    by_time = tokens_of(late, other, profile=built_in("mehrt-paper", order="time"))
    assert by_time["token"].to_list()[1:] == ["LOINC/1-1", "LOINC/2-2"]
    assert by_time["time"].to_list()[1:] == [NOON, NOON + timedelta(days=1)]


# --- ids


def counts(*rows: tuple[str, str, int]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema={"split": pl.String, "token": pl.String, "count": pl.Int64}, orient="row")
    return frame.with_columns(pl.lit("structured").alias("type"))


def ids(frame: pl.DataFrame) -> dict[str, int]:
    return dict(frame.select("token", "token_id").iter_rows())


def test_ids_are_dense_by_train_count_then_name() -> None:
    fitted = extend(counts(("train", "b", 2), ("train", "a", 2), ("train", "c", 9), ("train", "b", 1)), None)
    first = len(RESERVED)
    assert ids(fitted[first:]) == {"c": first, "b": first + 1, "a": first + 2}
    assert fitted["token_id"].to_list() == list(range(first + 3))
    assert fitted["train_count"].to_list()[first:] == [9, 3, 2]
    tied = extend(counts(("train", "z", 1), ("train", "y", 1), ("train", "Z", 1)), None)
    assert tied["token"].to_list()[first:] == ["Z", "y", "z"]


def test_what_train_does_not_have_gets_no_id_and_no_weight() -> None:
    fitted = extend(
        counts(("train", "a", 1), ("held_out", "secret", 99), ("tuning", "b", 5), ("held_out", "a", 7)), None
    )
    assert set(fitted["token"]) == {token for token, _ in RESERVED} | {"a"}
    assert fitted.filter(pl.col("token") == "a")["train_count"].item() == 1


def test_the_next_night_appends_and_keeps_what_vanished() -> None:
    first = extend(counts(("train", "a", 5), ("train", "b", 1)), None)
    known = first.select("token_id", "token", "type")
    second = extend(counts(("train", "b", 50), ("train", "new", 70), ("train", "more", 80)), known)
    assert second[: len(first)].select("token_id", "token", "type").equals(known)
    assert second["token"].to_list()[len(first) :] == ["more", "new"]
    assert second["train_count"].to_list()[len(RESERVED) :] == [0, 50, 80, 70]


def test_shuffled_counts_give_the_same_vocabulary() -> None:
    rows = [("train", f"t{number % 17}", number % 5 + 1) for number in range(60)]
    assert extend(counts(*rows), None).equals(extend(counts(*random.Random(2).sample(rows, 60)), None))


def test_what_train_does_not_have_is_unknown_and_of_type_special() -> None:
    fitted = extend(counts(("train", "LOINC/2160-0", 1)), None)
    given = events(LAB, {"code": "RXNORM/5"}, SEX, image("k"))
    line = named_tokens(given, MEHRT, usable("k"), vocabulary=fitted)
    assert line["token_id"].to_list() == [BOS, UNK, len(RESERVED), UNK, IMAGE_TOKENS["ct"]]
    assert line["type"].to_list() == [
        TokenType.SPECIAL, TokenType.SPECIAL, TokenType.STRUCTURED, TokenType.SPECIAL, TokenType.IMAGE,
    ]  # fmt: skip


# --- the stages


def release(base: Path, buckets: dict[int, pl.DataFrame], splits: dict[int, str]) -> ReleaseLayout:
    tree = ReleaseLayout(base)
    for bucket, frame in buckets.items():
        write_table(tree.events(bucket), frame, EVENTS, "events")
        write_table(tree.items(bucket), ITEMS.empty_table(), ITEMS, "items")
        codes = frame.group_by("code").agg(pl.len().cast(pl.Int64).alias("events"))
        write_table(tree.codes_of(bucket), codes, CODE_COUNTS, "codes")
        write_contents(tree, bucket, frame)
    assigned = pl.DataFrame(list(splits.items()), schema=["subject_id", "split"], orient="row")
    write_table(tree.subject_splits, assigned, SUBJECT_SPLITS, "splits")
    return tree


def run_all(base: Path, buckets: list[int], previous: Path | None = None) -> tuple[pl.DataFrame, dict[str, Any]]:
    settings = MEHRT.model_dump(mode="json")
    counted = []
    for bucket in buckets:
        counted += count.run({"bucket": bucket, "profile": "mehrt", "settings": settings, "stores": {}}, base).files
    params = {
        "profile": "mehrt",
        "settings": settings,
        "counts": counted,
        "values": [],
        "left_out": [],
        "quantiles": None,
    }
    fitted = vocabulary.run(params | {"previous": previous and str(previous)}, base)
    for bucket in buckets:
        tokenize.run({"bucket": bucket, "profile": "mehrt", "settings": settings, "stores": {}}, base)
    return read_frame(ReleaseLayout(base).vocabulary("mehrt")), fitted.counts


def test_the_stages_count_fit_and_encode(tmp_path: Path) -> None:
    held = {"subject_id": 2, "code": "RXNORM/7"}
    two = {
        0: events(SEX, LAB, LAB | {"time": NOON + timedelta(days=1)}),
        1: events(held, held, SEX | {"subject_id": 2}),
    }
    tree = release(tmp_path / "a", two, {1: "train", 2: "held_out"})
    fitted, totals = run_all(tmp_path / "a", [0, 1])
    assert fitted["token"].to_list()[len(RESERVED) :] == ["LOINC/2160-0", "DEMO/SEX/F"]
    assert totals["unknown"] == {"held_out": 2}
    assert totals["tokens"] == {"held_out": 4, "train": 4}
    line = read_frame(tree.timeline("mehrt", 1))
    assert line["token_id"].to_list() == [BOS, len(RESERVED) + 1, UNK, UNK]
    assert line["subject_id"].to_list() == [2] * 4

    shuffled = release(tmp_path / "b", {1: two[0], 0: two[1]}, {2: "held_out", 1: "train"})
    assert run_all(tmp_path / "b", [1, 0])[0].equals(fitted)
    assert read_frame(shuffled.timeline("mehrt", 0)).equals(line)

    more = {0: pl.concat([two[0], events(*[{"code": "RXNORM/1", "subject_id": 3}] * 9)])}
    release(tmp_path / "c", more, {1: "train", 3: "train"})
    second, _ = run_all(tmp_path / "c", [0], tree.vocabulary("mehrt"))
    assert second["token"].to_list() == [*fitted["token"], "RXNORM/1"]
