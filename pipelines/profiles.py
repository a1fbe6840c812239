"""Profiles: which tokens an event becomes. Rules are data about codes, applied to the distinct codes of a bucket.

Sources: ICD-10-CM as 3 | 4–6 | 7th characters, one token a code otherwise, one token an image after what is recorded at
its time (MEHRT §2.1; Renc et al. 2024). ICD-10-PCS as 3 | 4–6 | 7th. Each kind of piece has a namespace of its own,
because 57 ICD-10-CM categories equal tails of other codes and 49 PCS tables equal CM categories.
"""

import polars as pl

from pipelines.align import BIRTH
from pipelines.config import ProfileConfig
from warehouse.order import sort_events
from warehouse.tokens import BOS, IMAGE_TOKENS, RESERVED, TokenType

SPLIT_INTO_PIECES = ("ICD10CM", "ICD10PCS")
OLDEST = 90
DAYS_A_YEAR = 365.2425

# One row per token of a subject: subject_id, token, type (TokenType), time, item_key. Time is null for what has none.
TOKEN_COLUMNS = ("subject_id", "token", "type", "time", "item_key")


def pieces_of(codes: pl.Series) -> pl.DataFrame:
    """Distinct codes as tokens: columns code, token, piece (0, 1, 2), in order within a code."""
    frame = codes.unique().sort().to_frame("code")
    namespace = pl.col("code").str.split("/").list.first()
    body = pl.col("code").str.splitn("/", 2).struct.field("field_1")
    split = namespace.is_in(SPLIT_INTO_PIECES) & body.is_not_null() & ~body.fill_null("").str.contains("/")
    middle, tail = body.str.slice(3, 3), body.str.slice(6)
    tokens = pl.concat_list(
        pl.when(split).then(namespace + "/" + body.str.slice(0, 3)).otherwise("code"),
        pl.when(split & (middle != "")).then(namespace + "/4-6/" + middle),
        pl.when(split & (tail != "")).then(namespace + "/7/" + tail),
    )
    return (
        frame.with_columns(tokens.alias("token"), pl.lit([0, 1, 2], pl.List(pl.UInt8)).alias("piece"))
        .explode("token", "piece")
        .drop_nulls("token")
    )


def code_of(tokens: list[str]) -> str:
    """The code that a group of pieces came from; the inverse of `pieces_of` on one code."""
    head, *rest = tokens
    return head + "".join(piece.rsplit("/", 1)[1] for piece in rest)


def token_rows(
    events: pl.DataFrame, usable_items: pl.DataFrame, profile: ProfileConfig
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Every subject's tokens in order, and the events that the profile leaves out, counted by namespace and reason.

    Args:
        events: EVENTS of one bucket.
        usable_items: item_key of the items whose verdict is ok.

    Returns:
        (TOKEN_COLUMNS in order, [namespace, reason, events]).
    """
    events = sort_events(events, by=profile.order).with_columns(
        pl.col("code").str.split("/").list.first().alias("_namespace")
    )
    is_image = pl.col("kind") == "image"
    is_birth = pl.col("code") == BIRTH
    demographic = pl.col("_namespace") == "DEMO"
    has_vector = pl.col("item_key").is_in(usable_items["item_key"].implode())
    repeated = demographic & (pl.struct("subject_id", _attribute()).is_first_distinct().not_())
    named = pl.lit(True) if profile.namespaces is None else pl.col("_namespace").is_in(list(profile.namespaces))
    reason = (
        pl.when(is_birth)
        .then(pl.lit("becomes_age"))
        .when(is_image & ~has_vector)
        .then(pl.lit("image_without_vector"))
        .when(is_image)
        .then(None)
        .when(~named)
        .then(pl.lit("namespace_not_in_profile"))
        .when(repeated)
        .then(pl.lit("repeated_demographic"))
    )
    marked = events.with_columns(reason.alias("_reason"))
    dropped = (
        marked.drop_nulls("_reason")
        .group_by(pl.col("_namespace").alias("namespace"), pl.col("_reason").alias("reason"))
        .agg(pl.len().cast(pl.Int64).alias("events"))
        .sort("namespace", "reason")
    )
    kept = marked.filter(pl.col("_reason").is_null())
    tokens = pl.concat([_start(events), _demographics(events, kept), _structured(kept, profile)])
    ordered = tokens.sort("subject_id", "_section", "_order", "_piece", maintain_order=True)
    return ordered.select(TOKEN_COLUMNS), dropped


def _attribute() -> pl.Expr:
    """`DEMO/SEX` of `DEMO/SEX/F`."""
    return pl.col("code").str.splitn("/", 3).struct.field("field_1").alias("_attribute")


def _tokens(frame: pl.DataFrame, section: int, kind: TokenType, **columns: pl.Expr) -> pl.DataFrame:
    given = {
        "time": pl.lit(None, pl.Datetime("us")),
        "item_key": pl.lit(None, pl.String),
        "_order": pl.lit(0, pl.UInt32),
        "_piece": pl.lit(0, pl.UInt8),
        **columns,
    }
    return frame.select(
        "subject_id",
        given["token"].cast(pl.String).alias("token"),
        pl.lit(int(kind), pl.UInt8).alias("type"),
        given["time"].cast(pl.Datetime("us")).alias("time"),
        given["item_key"].alias("item_key"),
        pl.lit(section, pl.UInt8).alias("_section"),
        given["_order"].cast(pl.UInt32).alias("_order"),
        given["_piece"].cast(pl.UInt8).alias("_piece"),
    )


def _start(events: pl.DataFrame) -> pl.DataFrame:
    subjects = events.select(pl.col("subject_id").unique(maintain_order=True))
    return _tokens(subjects, 0, TokenType.SPECIAL, token=pl.lit(RESERVED[BOS][0]))


def _demographics(events: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
    """Sex, ethnicity and age at the first event: at the start, without a time."""
    recorded = kept.filter(pl.col("_namespace") == "DEMO").sort("subject_id", "code")
    order = pl.int_range(pl.len()).over("subject_id")
    born = events.filter(pl.col("code") == BIRTH).select("subject_id", pl.col("time").alias("_birth"))
    first = (
        events.filter(pl.col("time").is_not_null() & (pl.col("code") != BIRTH))
        .group_by("subject_id")
        .agg(pl.col("time").min().alias("_first"))
        .join(born, on="subject_id")
        .sort("subject_id")
    )
    # From the interval, which a date shift keeps, not from the two years, which it does not.
    years = ((pl.col("_first") - pl.col("_birth")).dt.total_days() / DAYS_A_YEAR).floor().cast(pl.Int64).clip(0)
    decade = years // 10 * 10
    span = pl.concat_str(decade.cast(pl.String), pl.lit("-"), (decade + 9).cast(pl.String))
    age = pl.when(years >= OLDEST).then(pl.lit(f"{OLDEST}+")).otherwise(span)
    return pl.concat(
        [
            _tokens(recorded, 1, TokenType.DEMOGRAPHIC, token=pl.col("code"), _order=order),
            _tokens(first, 1, TokenType.DEMOGRAPHIC, token="DEMO/AGE/" + age, _order=pl.lit(255)),
        ]
    )


def _structured(kept: pl.DataFrame, profile: ProfileConfig) -> pl.DataFrame:
    """Events after the demographics; the order of `kept` is theirs, images after what is known at their moment."""
    timed = kept.filter((pl.col("_namespace") != "DEMO") | (pl.col("kind") == "image")).with_columns(
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("_index")
    )
    image = pl.col("kind") == "image"
    codes = timed.filter(~image)
    names = {name: RESERVED[number][0] for name, number in IMAGE_TOKENS.items()}
    modality = pl.col("code").str.strip_prefix("IMAGE/").str.to_lowercase()
    return pl.concat(
        [
            _tokens(
                codes.join(pieces_of(codes["code"]), on="code"),
                2,
                TokenType.STRUCTURED,
                token=pl.col("token"),
                time=pl.col(profile.order),
                _order=pl.col("_index"),
                _piece=pl.col("piece"),
            ),
            _tokens(
                timed.filter(image),
                2,
                TokenType.IMAGE,
                token=modality.replace_strict(names, return_dtype=pl.String),
                time=pl.col(profile.order),
                item_key=pl.col("item_key"),
                _order=pl.col("_index"),
            ),
        ]
    )
