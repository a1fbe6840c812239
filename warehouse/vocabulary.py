"""What a model that was trained on token ids depends on: which id is which token, and where values are cut."""

from collections.abc import Sequence

import polars as pl
import pyarrow as pa

from warehouse.files import sha256_json

# Breaks between the quantiles of a code's values in one unit (null: values without a unit), ascending; a value lies in
# the bin of as many breaks as are below it. Append-only. `code` is the code's token.
QUANTILES = pa.schema(
    [
        pa.field("code", pa.string(), nullable=False),
        pa.field("unit", pa.string()),
        pa.field("breaks", pa.list_(pa.float64()), nullable=False),
        pa.field("train_values", pa.int64(), nullable=False),
    ]
)

# What became of a split's events, by namespace: `token` (known tokens), `unknown` (tokens that train does not have) and
# `dropped`, with its reason. Tokens of intervals and reserved ones are not counted.
COVERAGE = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("namespace", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ]
)


def vocabulary_hash(vocabulary: pl.DataFrame, size: int | None = None) -> str:
    """SHA-256 of ids and tokens, of the first `size` ids where given.

    Ids are only ever appended, so what was written with a smaller vocabulary is still right as long as the hash of
    that prefix is.
    """
    return hash_of(sorted(zip(vocabulary["token_id"].to_list(), vocabulary["token"].to_list(), strict=True))[:size])


def hash_of(entries: Sequence[tuple[int, str]]) -> str:
    """SHA-256 of ids and tokens in the order of ids, without polars: its threads do not survive a fork, and readers'
    workers are forked."""
    return sha256_json([[number for number, _ in entries], [token for _, token in entries]])
