"""What subjects are made of, for tests that write their events themselves."""

import numpy as np
import polars as pl

from pipelines.carrying.cells import Contents
from warehouse.layout import ReleaseLayout
from warehouse.parquet import write_table
from warehouse.schemas import CONTENTS


def write_contents(tree: ReleaseLayout, bucket: int, events: pl.DataFrame) -> None:
    """Beside a bucket's events: each subject is made of its rows."""
    rows = events.group_by("subject_id").agg(pl.len().cast(pl.Int64).alias("rows"), pl.struct(pl.all()).hash().sum())
    rows = rows.sort("subject_id")
    hashes = rows.select(pl.nth(2), pl.lit(1, pl.UInt64).alias("high")).to_numpy().astype(np.uint64)
    contents = Contents.of(rows["subject_id"].to_numpy(), hashes, rows["rows"].to_numpy())
    frame = contents.frame().with_columns(pl.lit(None).alias("account"))
    write_table(tree.contents(bucket), frame, CONTENTS, "contents")
