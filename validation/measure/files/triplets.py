"""One bucket's triplets, held against its items and its events: each is of one patient, and says whether it has a
record."""

import polars as pl

from validation.measure.files.events import Part
from validation.measure.reading import collect, gather, scan
from validation.measure.tally import Tally
from warehouse.layout import ReleaseLayout
from warehouse.schemas import TRIPLETS

_RECORD = ("ehr_cutoff_time", "visit_id", "visit_ids")
_READ = ["subject_id", "split", "source", "image_keys", "text_key", "has_ehr", *_RECORD, "set_aside"]
_VISITS = {"subject_id": pl.Int64, "visit_ids": pl.Int64}


class TripletAudit:
    """A bucket's triplets, and the visits of its events, gathered part by part."""

    def __init__(self, tree: ReleaseLayout, bucket: int) -> None:
        self._tree, self._bucket = tree, bucket
        self._visits = [pl.DataFrame(schema=_VISITS)]

    def add(self, part: Part) -> None:
        """Takes up the visits of a part's events."""
        visits = {"subject_id": part.subject[part.visited], "visit_ids": part.visit[part.visited]}
        self._visits.append(pl.DataFrame(visits, schema=_VISITS).unique())

    def count(self, tally: Tally) -> None:
        """Adds triplets by source, what is wrong with them, and the splits that each image and text is used in."""
        triplets = gather([self._tree.triplets(self._bucket)], TRIPLETS, _READ).with_row_index("row")
        whole = pl.all_horizontal(pl.col(name).is_not_null() for name in _RECORD)
        partly = pl.any_horizontal(pl.col(name).is_not_null() for name in _RECORD)
        used = triplets.filter(pl.col("set_aside").is_null())
        splits = used.group_by("subject_id").agg(pl.col("split").n_unique())
        tally.count(
            "triplets",
            {
                "foreign": self._foreign(triplets),
                "unmasked": triplets.filter(pl.when("has_ehr").then(~whole).otherwise(partly)).height,
                "subjects_across": splits.filter(pl.col("split") > 1).height,
            },
        )
        tally.add("triplets", triplets.group_by("source").agg(pl.len().alias("made")), of="source")
        items = keys(used, "split").group_by("item_key", "split").agg(pl.len().alias("uses"))
        tally.add("triplets", items, of="item_key", split="split")

    def _foreign(self, triplets: pl.DataFrame) -> int:
        path = self._tree.items(self._bucket)
        items = collect(scan(path).filter(pl.col("verdict") == "ok").select("subject_id", "item_key"), path)
        visits = pl.concat(self._visits).unique()
        listed = triplets.select("row", "subject_id", "visit_ids").drop_nulls("visit_ids").explode("visit_ids")
        wrong = [
            keys(triplets, "row", "subject_id").join(items, on=["subject_id", "item_key"], how="anti").select("row"),
            listed.join(visits, on=["subject_id", "visit_ids"], how="anti").select("row"),
        ]
        return pl.concat(wrong).unique().height


def keys(triplets: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """A row for each image and text of a triplet: `item_key`, and some columns."""
    images = triplets.select(*columns, item_key="image_keys").explode("item_key")
    return pl.concat([images, triplets.select(*columns, item_key="text_key")])
