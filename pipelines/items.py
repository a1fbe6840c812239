"""Where the items of a segment lie, and those of one bucket."""

from pathlib import Path

import polars as pl

_EMPTY: dict[str, pl.DataType | type[pl.DataType]] = {
    "item_key": pl.String, "modality": pl.String, "time": pl.Datetime("us"), "available_time": pl.Datetime("us"),
    "time_source": pl.String, "time_precision": pl.String, "verdict": pl.String, "units_expected": pl.Int32,
    "geometry": pl.String, "subject_id": pl.Int64, "artificial_link": pl.Boolean,
}  # fmt: skip


# Which row of which file of GROUPED an item is.
ITEM_PLACES = {"item_key": pl.String, "grouped": pl.String, "row": pl.Int64}


def private_paths(private: Path, segment: str) -> Path:
    """Where an index keeps what ties its usable items to raw files: ITEM_PLACES."""
    return private / "items" / Path(segment).with_suffix(".parquet").name


def items_of_bucket(segments: list[Path], bucket: int) -> pl.DataFrame:
    """The indexed items of one bucket, every modality."""
    frames = [pl.scan_parquet(path).filter(pl.col("bucket") == bucket).drop("bucket") for path in segments]
    return pl.concat(frames).collect() if frames else pl.DataFrame(schema=_EMPTY)
