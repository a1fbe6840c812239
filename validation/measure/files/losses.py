"""Tokens that bear loss under a plan, counted from timelines without the code of the packing stage."""

import numpy as np
import numpy.typing as npt
import polars as pl

from warehouse.arrays import I64
from warehouse.losses import LOSS_TARGETS
from warehouse.manifest import PlanEntry
from warehouse.tokens import TokenType


def loss_of(subject: I64, kind: npt.NDArray[np.uint8], plan: PlanEntry) -> pl.DataFrame:
    """`subject_id` and `loss`: targets that are packed and not the first of their segment.

    Args:
        subject, kind: (n,) of whole timelines, in order.
    """
    tokens = pl.DataFrame({"subject_id": subject, "type": kind})
    kept = tokens if plan.images else tokens.filter(pl.col("type") != int(TokenType.IMAGE))
    place = pl.int_range(pl.len(), dtype=pl.Int64).over("subject_id")
    number = pl.len().cast(pl.Int64).over("subject_id")
    first = (number - plan.context).clip(lower_bound=0) if plan.mode == "last_n" else pl.lit(0, pl.Int64)
    within = place - first
    target = pl.col("type").is_in([int(loss) for loss in LOSS_TARGETS[str(plan.loss)]])
    bears = (within >= 0) & (within % plan.context != 0) & target
    return (
        kept.with_columns(bears.alias("bears"))
        .group_by("subject_id", maintain_order=True)
        .agg(pl.col("bears").sum().cast(pl.Int64).alias("loss"))
    )
