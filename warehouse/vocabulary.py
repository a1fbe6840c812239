"""What a model that was trained on token ids depends on: which id is which token."""

import polars as pl

from warehouse.files import sha256_json


def vocabulary_hash(vocabulary: pl.DataFrame, size: int | None = None) -> str:
    """SHA-256 of ids and tokens, of the first `size` ids where given.

    Ids are only ever appended, so what was written with a smaller vocabulary is still right as long as the hash of
    that prefix is.
    """
    ordered = vocabulary.sort("token_id").head(len(vocabulary) if size is None else size)
    return sha256_json([ordered["token_id"].to_list(), ordered["token"].to_list()])
