"""What notes are to one another: addenda, summaries of one visit, copies. It is marked on each."""

from collections.abc import Callable, Sequence

import polars as pl

from extractors.items import OK
from extractors.note.copies import U32, groups_of
from extractors.note.settings import NoteSettings
from extractors.note.tables import parents_of

OTHER_SUMMARY = "refused_other_summary"
LEAST_OF_A_KIND = 11  # notes; a rarer kind may tell of a patient
_WHEN = ("available", "time")
TokensOf = Callable[[Sequence[int]], U32]


def marked(settings: NoteSettings, notes: pl.DataFrame, signatures: U32, tokens_of: TokensOf) -> pl.DataFrame:
    """Notes with columns note (the id, or what tells one without), addendum, parent, parent_absent, id_repeated,
    of_visit, exact_copies, near_copies, copied_from; of several summaries of a visit the verdict.

    Args:
        notes: columns as `Passage.notes` gives them.
        signatures: of those that have tokens, in order.
        tokens_of: the tokens of a note, by its place in the kept file.
    """
    parts = [pl.col(name).cast(pl.String).fill_null("") for name in ("subject", "time", "kind", "hash")]
    without_id = pl.when(pl.col("tokens") > 0).then(pl.concat_str(parts, separator="\n"))
    without_text = pl.concat_str(["path", "record"], separator="\n")
    note = pl.coalesce("id", without_id, without_text)
    several = (pl.len().over("table", "id") > 1) & (pl.col("letters").n_unique().over("table", "id") > 1)
    notes = notes.with_row_index("place").with_columns(
        note.alias("note"), (pl.col("id").is_not_null() & several).alias("id_repeated")
    )
    notes = _copied(settings, _of_visits(settings, _with_parents(settings, notes)), signatures, tokens_of)
    rare = pl.len().over("kind") < LEAST_OF_A_KIND
    return notes.with_columns(pl.when(~rare).then("kind").alias("kind")).sort("place")


def _with_parents(settings: NoteSettings, notes: pl.DataFrame) -> pl.DataFrame:
    parts = []
    for (table,), part in notes.partition_by("table", as_dict=True, maintain_order=True).items():
        rule = settings.note_rules.get(str(table))
        if rule is not None and rule.details is not None:
            known = parents_of(settings, rule).rename({"parent": "_parent"})
            part = part.join(known, on="id", how="left", maintain_order="left")
            part = part.with_columns(pl.coalesce("parent", "_parent").alias("parent")).drop("_parent")
        parts.append(part)
    notes = pl.concat(parts) if parts else notes
    absent = pl.col("parent").is_not_null() & ~pl.col("parent").is_in(notes["id"].drop_nulls().implode())
    return notes.with_columns(
        (pl.col("is_addendum") | pl.col("parent").is_not_null()).alias("addendum"), absent.alias("parent_absent")
    )


def _of_visits(settings: NoteSettings, notes: pl.DataFrame) -> pl.DataFrame:
    """How many summaries a visit has, on each where there are several; all but the last are refused where it counts."""
    counted = pl.col("summary") & ~pl.col("addendum") & (pl.col("verdict") == OK) & pl.col("visit").is_not_null()
    visit = ["table", "subject", "visit"]
    summaries = notes.filter(counted).select(
        "place", pl.coalesce(*_WHEN).alias("when"), "note", *visit, pl.len().over(visit).alias("of_visit")
    )
    last = summaries.sort("when", "note", nulls_last=False).group_by(visit).agg(pl.col("place").last())["place"]
    several = summaries.filter(pl.col("of_visit") > 1).select("place", "of_visit")
    notes = notes.join(several, on="place", how="left", maintain_order="left")
    if settings.summaries == "all":
        return notes
    other = pl.col("of_visit").is_not_null() & ~pl.col("place").is_in(last.implode())
    return notes.with_columns(pl.when(other).then(pl.lit(OTHER_SUMMARY)).otherwise("verdict").alias("verdict"))


def _copied(settings: NoteSettings, notes: pl.DataFrame, signatures: U32, tokens_of: TokensOf) -> pl.DataFrame:
    """How many other notes say exactly the same, how many others nearly, and which of the same subject did so first."""
    said = notes.filter(pl.col("tokens") > 0).sort("place")
    different = said.with_row_index("signature").unique("hash", keep="first", maintain_order=True)
    places = different.select("batch", "row").rows()
    group = groups_of(
        signatures[different["signature"].to_numpy()], lambda number: tokens_of(places[number]), settings.near
    )
    ties = different.select("hash").with_columns(pl.Series("group", group, dtype=pl.Int64))
    said = said.select("place", "hash", "subject", "note", pl.coalesce(*_WHEN).alias("when"))
    said = said.join(ties, on="hash", how="left", maintain_order="left").sort("when", "place", nulls_last=True)
    ours = ["group", "subject"]
    said = said.select(
        "place",
        (pl.len().over("hash") - 1).alias("exact_copies"),
        (pl.len().over("group") - pl.len().over("hash")).alias("near_copies"),
        pl.when(pl.col("subject").is_not_null() & (pl.int_range(pl.len()).over(ours) > 0))
        .then(pl.col("note").first().over(ours))
        .alias("copied_from"),
    )
    return notes.join(said, on="place", how="left", maintain_order="left")
