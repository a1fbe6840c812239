"""What the measures of a bucket depend on: as much of a vocabulary as its tokens have, and no more."""

from pathlib import Path

import polars as pl

from tests.support.cohort import CODES, PROFILE, VOCABULARY, cohort, draw
from validation.measure.stage import prefix_hashes
from warehouse.layout import ReleaseLayout
from warehouse.parquet import write_table
from warehouse.schemas import VOCABULARY as SCHEMA


def test_a_hash_of_a_vocabulary_changes_from_the_token_on_that_changed(tmp_path: Path) -> None:
    tree = ReleaseLayout(cohort(tmp_path / "root", *draw(1)).path)
    whole = prefix_hashes(tree, PROFILE)
    assert len(set(whole)) == len(VOCABULARY)

    def same(vocabulary: pl.DataFrame) -> int:
        """How many of the hashes stay, all at the beginning."""
        write_table(tree.vocabulary(PROFILE), vocabulary, SCHEMA, "vocabulary")
        found = prefix_hashes(tree, PROFILE)
        equal = [first == second for first, second in zip(whole, found, strict=False)]
        assert equal == sorted(equal, reverse=True)
        return sum(equal)

    more = VOCABULARY.tail(1).with_columns(pl.col("token_id") + 1, pl.lit("NEW").alias("token"))
    assert same(pl.concat([VOCABULARY, more.cast(VOCABULARY.schema)])) == len(VOCABULARY)
    changed = pl.col("token_id") == 9
    assert same(VOCABULARY.with_columns(pl.when(changed).then(pl.lit("X")).otherwise("token").alias("token"))) == 9
    assert same(VOCABULARY.with_columns(pl.when(changed).then(pl.lit("x")).otherwise("type").alias("type"))) == 9


def test_a_code_of_another_bucket_that_makes_a_token_changes_the_hash_of_it(tmp_path: Path) -> None:
    """By such a code a token of this bucket is looked for among the events that may make it."""
    tree = ReleaseLayout(cohort(tmp_path / "root", *draw(1)).path)
    codes, token = pl.read_parquet(tree.codes), CODES[3]
    codes.filter(~pl.col("code").str.starts_with(token)).write_parquet(tree.codes)
    without = prefix_hashes(tree, PROFILE)
    pl.concat([codes, codes.head(1).with_columns(pl.lit(f"{token}/1").alias("code"))]).write_parquet(tree.codes)
    found = prefix_hashes(tree, PROFILE)
    place = VOCABULARY.filter(pl.col("token") == token)["token_id"].item()
    assert [a == b for a, b in zip(without, found, strict=True)] == [number < place for number in range(len(found))]
