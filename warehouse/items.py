"""The rows of items/: one an item, or one for each encoder of an item that several encoders were to read."""

import polars as pl


def each_once(items: pl.DataFrame) -> pl.DataFrame:
    """One row an item, in the rows' order: of several encoders' rows the first that is usable, else the first.

    Args:
        items: at least `item_key` and `verdict`, of warehouse.schemas.ITEMS.
    """
    if not items["item_key"].is_duplicated().any():
        return items
    ranked = items.with_row_index("place").sort(pl.col("verdict") != "ok", "place")
    return ranked.unique("item_key", keep="first", maintain_order=True).sort("place").drop("place")
