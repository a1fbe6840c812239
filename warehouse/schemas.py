"""Arrow schemas of everything a release holds, and the writer that keeps them."""

import pyarrow as pa

from warehouse.modalities import INDEXED

TIME = pa.timestamp("us")
SPLITS = ("train", "tuning", "held_out")

# MEDS 0.4.1 columns first (subject_id, time, code, numeric_value, text_value), then ours. `kind` is what the total
# order ranks by: visit_start, clinical, image, death, visit_end. `availability` says how available_time is known:
# recorded, time (taken to be the time), estimated. `value_flag` marks a number that is not the whole value: <, <=, >,
# >=, range, unit, flag. `conflict` marks a contradiction that is left as it is; docs/quality.md lists them.
EVENTS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("time", TIME),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),
        pa.field("text_value", pa.large_string()),
        pa.field("available_time", TIME),
        pa.field("time_precision", pa.string()),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("unit", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("visit_id", pa.int64()),
        pa.field("item_key", pa.string()),
        pa.field("availability", pa.string()),
        pa.field("value_flag", pa.string()),
        pa.field("conflict", pa.string()),
    ]
)

# One row per image found. `verdict` is ok, refused_* (not the modality) or failed_* (should have been good).
ITEMS = pa.schema(
    [
        pa.field("subject_id", pa.int64()),
        pa.field("item_key", pa.string(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("time", TIME),
        pa.field("available_time", TIME),
        pa.field("time_source", pa.string()),
        pa.field("time_precision", pa.string()),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("units_expected", pa.int32()),
        pa.field("units_encoded", pa.int32(), nullable=False),
        pa.field("units_failed", pa.int32(), nullable=False),
        pa.field("store", pa.string()),
        pa.field("encoder", pa.string()),
        pa.field("dim", pa.int32()),
        pa.field("geometry", pa.string()),
        pa.field("artificial_link", pa.bool_(), nullable=False),
    ]
)

# The text of a usable item, as its encoder saw it: what `.places` says of windows are places in it.
TEXTS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("item_key", pa.string(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("time", TIME),
        pa.field("available_time", TIME),
        pa.field("text", pa.large_string(), nullable=False),
    ]
)

# What splits are stratified by. A modality's column counts a subject's usable items. `mean_interval_days` is over
# consecutive distinct times; null below two of them.
SUBJECTS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("events", pa.int64(), nullable=False),
        pa.field("static_events", pa.int64(), nullable=False),
        *(pa.field(modality, pa.int64(), nullable=False) for modality in INDEXED),
        pa.field("mean_interval_days", pa.float64()),
    ]
)

# What each subject of a bucket is made of: how many rows were read of it, a hash of them and of its items in two
# halves, and what was said of it. The next release copies the subjects of whom these are the same.
CONTENTS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("low", pa.uint64(), nullable=False),
        pa.field("high", pa.uint64(), nullable=False),
        pa.field(
            "account",
            pa.list_(
                pa.struct(
                    [
                        pa.field("reason", pa.string()),
                        pa.field("source", pa.string()),
                        *(pa.field(name, pa.int64()) for name in ("rows", "events", "timed")),
                    ]
                )
            ),
        ),
    ]
)

# Append-only: a row, once in a release, stands in every later one with the same split.
SPLIT_LEDGER = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("stratum", pa.string(), nullable=False),
        pa.field("ordinal", pa.int64(), nullable=False),
    ]
)

# The release's subjects under one scheme; `order` is the fixed order that subsets are prefixes of.
SCHEME_SUBJECTS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("order", pa.float64(), nullable=False),
    ]
)

# The release's subjects that have no split, and why.
SPLIT_QUARANTINE = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

VOCABULARY = pa.schema(
    [
        pa.field("token_id", pa.uint32(), nullable=False),
        pa.field("token", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("train_count", pa.int64(), nullable=False),
    ]
)

TOKEN_COUNTS = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("token", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ]
)

# One row per token, a subject's tokens together and in order. `type` is warehouse.tokens.TokenType.
TIMELINES = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("token_id", pa.uint32(), nullable=False),
        pa.field("type", pa.uint8(), nullable=False),
        pa.field("time", TIME),
        pa.field("item_key", pa.string()),
    ]
)

# Train's subjects in the fixed order of their scheme, and the tier of a plan's token budgets that each is in: budget k
# is tiers 0 to k; null behind the last budget. `loss_tokens` are targets of the plan's loss.
SUBSETS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("order", pa.float64(), nullable=False),
        pa.field("tier", pa.int32()),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("loss_tokens", pa.int64(), nullable=False),
    ]
)

# Events that are worked out of a subject's events for labels alone: they stand in no other file.
DERIVED = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("time", TIME, nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),
        pa.field("available_time", TIME, nullable=False),
        pa.field("time_precision", pa.string()),
    ]
)

# A task's labels: MEDS' label schema, with no other column.
LABELS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("prediction_time", TIME, nullable=False),
        pa.field("boolean_value", pa.bool_(), nullable=False),
    ]
)

# Whom each rule of a task leaves out, in order, and who is left: start = every `removed` + positive + negative. Those
# without a split are counted under `no_split`.
ATTRITION = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("step", pa.int32(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("removed", pa.int64(), nullable=False),
        pa.field("left", pa.int64(), nullable=False),
    ]
)

# How long after its time a code's fact usually becomes available: the 95th percentile over the rows that say so when
# the code first had enough of them. Append-only. The code is empty for a whole table.
LAGS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("lag_us", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)

# Raw rows that made nothing: the number of the record in its file, counted from 1 without the header, and why.
QUARANTINE = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

# Per table and outcome: rows_in = events + static + reference + every quarantine reason.
LEDGER = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("events", pa.int64(), nullable=False),
    ]
)

# A row an item that has copies, by method: `exact` (the same pixels or tokens) or `near`. `group` is the least key of
# the copies, of which there are `members`; `across` says that they lie in several splits. Near pictures stay.
COPIES = pa.schema(
    [
        pa.field("modality", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("item_key", pa.string(), nullable=False),
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("members", pa.int64(), nullable=False),
        pa.field("across", pa.bool_(), nullable=False),
        pa.field("set_aside", pa.bool_(), nullable=False),
    ]
)

# A row a triplet: a study's images, oldest first, those of earlier studies flagged; its text, with the places in it, in
# letters, of windows and sentences (null where the release holds no texts); and until when its record counts. Without a
# visit `has_ehr` is false and the record's columns are null. `primary_dx` is what came out, known at its own time.
# `set_aside` says why a triplet is not to be used: no_split, kept_out, duplicate.
TRIPLETS = pa.schema(
    [
        pa.field("triplet_id", pa.string(), nullable=False),
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("image_keys", pa.list_(pa.string()), nullable=False),
        pa.field("image_times", pa.list_(TIME), nullable=False),
        pa.field("prior_flags", pa.list_(pa.bool_()), nullable=False),
        pa.field("text_key", pa.string(), nullable=False),
        pa.field("text_time", TIME, nullable=False),
        pa.field("text_available_time", TIME, nullable=False),
        pa.field("text_role", pa.string(), nullable=False),
        pa.field("text_source", pa.string()),
        pa.field("segment_begins", pa.list_(pa.int32()), nullable=False),
        pa.field("segment_ends", pa.list_(pa.int32()), nullable=False),
        pa.field("sentence_begins", pa.list_(pa.int32())),
        pa.field("sentence_ends", pa.list_(pa.int32())),
        pa.field("has_ehr", pa.bool_(), nullable=False),
        pa.field("link_rule", pa.string(), nullable=False),
        pa.field("ehr_cutoff_time", TIME),
        pa.field("visit_id", pa.int64()),
        pa.field("visit_ids", pa.list_(pa.int64())),
        pa.field("primary_dx", pa.string()),
        pa.field("primary_dx_time", TIME),
        pa.field("set_aside", pa.string()),
    ]
)

# What became of images, studies, texts and subjects, by their modality (`all` for subjects), step and rule.
FUNNEL = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("step", pa.string(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
    ]
)

# Types of a visit graph's nodes: what was found or done, and the classes that it is of.
CLINICAL_NODES = ("diagnosis", "procedure", "medication", "lab", "vital")
NODE_TYPES = (*CLINICAL_NODES, "concept")
CO_OCCURS, IS_A = "co_occurs", "is_a"

# A row a visit, a subject's together and by start. `visit` is its number among the subject's, from 0; `type` is the
# code of the event that began it; `last_time` is that of its last event. `days_since_prev` is null for the first.
# `diagnosis` to `concept` count its nodes of each type.
VISITS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("visit", pa.int32(), nullable=False),
        pa.field("visit_id", pa.int64(), nullable=False),
        pa.field("type", pa.string()),
        pa.field("start", TIME, nullable=False),
        pa.field("end", TIME),
        pa.field("last_time", TIME, nullable=False),
        pa.field("days_since_prev", pa.float32()),
        *(pa.field(name, pa.int32(), nullable=False) for name in NODE_TYPES),
    ]
)

# A row a node: `row` is that of its visit in the bucket's file of visits, `node` its number, from 0, among the visit's
# nodes of its type. `times` and `values` are of each of its events, by when it could be read; a concept has none.
GRAPH_NODES = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("node", pa.int32(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("unit", pa.string()),
        pa.field("available_time", TIME, nullable=False),
        pa.field("times", pa.list_(TIME), nullable=False),
        pa.field("values", pa.list_(pa.float32()), nullable=False),
    ]
)

# A row an edge of a visit's graph, and when it could be known. Pairs that occur together stand there once; where all of
# a visit's nodes do, no row says so.
GRAPH_EDGES = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("source_type", pa.string(), nullable=False),
        pa.field("relation", pa.string(), nullable=False),
        pa.field("target_type", pa.string(), nullable=False),
        pa.field("source", pa.int32(), nullable=False),
        pa.field("target", pa.int32(), nullable=False),
        pa.field("available_time", TIME, nullable=False),
    ]
)

# Every code of the release and every class above one, numbered from 0 in their order.
GRAPH_CODES = pa.schema([pa.field("id", pa.int32(), nullable=False), pa.field("code", pa.string(), nullable=False)])

# What the stage `measure` leaves of each bucket, or part of a shard; the gate judges the sum. In `counts`, how often
# something stands there: `measure` names it; `of`, `within` and `split` say of what. In `subjects`, whose events lie in
# a bucket, and whether some are no images'; in `keys`, the images that events name. In `lengths`, each subject's
# tokens, and the mean days between them and between their distinct times, without those of images and with them; in
# `gaps`, how often so much time lies between two distinct times of a population, and the exact days of these gaps. In
# `timelines`, each subject's tokens, those of images, and the sum of the hashes of what plans keep: with images' or
# without them, all or the last ones; in `losses`, tokens that bear loss under a plan with budgets. In `shards`, what
# was counted in some row groups of a shard; in `segments`, what each of their segments is.
MEASURES = {
    "counts": pa.schema(
        [
            pa.field("measure", pa.string(), nullable=False),
            pa.field("of", pa.string(), nullable=False),
            pa.field("within", pa.string(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("count", pa.int64(), nullable=False),
        ]
    ),
    "subjects": pa.schema(
        [
            pa.field("subject_id", pa.int64(), nullable=False),
            pa.field("bucket", pa.int64(), nullable=False),
            pa.field("known", pa.bool_(), nullable=False),
        ]
    ),
    "keys": pa.schema(
        [pa.field("item_key", pa.string(), nullable=False), pa.field("events", pa.int64(), nullable=False)]
    ),
    "lengths": pa.schema(
        [
            pa.field("subject_id", pa.int64(), nullable=False),
            pa.field("structured", pa.int64(), nullable=False),
            pa.field("tokens", pa.int64(), nullable=False),
            pa.field("interval_tokens_structured", pa.float64()),
            pa.field("interval_times_structured", pa.float64()),
            pa.field("interval_tokens_imaging", pa.float64()),
            pa.field("interval_times_imaging", pa.float64()),
        ]
    ),
    "gaps": pa.schema(
        [
            pa.field("population", pa.string(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("seconds", pa.int64(), nullable=False),
            pa.field("gaps", pa.int64(), nullable=False),
            pa.field("rest", pa.int64(), nullable=False),
            pa.field("squares", pa.int64(), nullable=False),
        ]
    ),
    "timelines": pa.schema(
        [
            pa.field("subject_id", pa.int64(), nullable=False),
            pa.field("given", pa.int64(), nullable=False),
            pa.field("images", pa.int64(), nullable=False),
            pa.field("with_images", pa.bool_(), nullable=False),
            pa.field("last", pa.int64()),
            pa.field("sum", pa.uint64(), nullable=False),
        ]
    ),
    "losses": pa.schema(
        [
            pa.field("plan", pa.string(), nullable=False),
            pa.field("subject_id", pa.int64(), nullable=False),
            pa.field("loss", pa.int64(), nullable=False),
        ]
    ),
    "shards": pa.schema(
        [
            pa.field("packs", pa.int64(), nullable=False),
            pa.field("tokens", pa.int64(), nullable=False),
            pa.field("capacity", pa.int64(), nullable=False),
            pa.field("max_segments", pa.int64(), nullable=False),
            pa.field("malformed_packs", pa.int64(), nullable=False),
            pa.field("ids_out_of_range", pa.int64(), nullable=False),
            pa.field("image_places", pa.int64(), nullable=False),
            pa.field("misplaced_images", pa.int64(), nullable=False),
            pa.field("dangling_images", pa.int64(), nullable=False),
            pa.field("foreign_images", pa.int64(), nullable=False),
            pa.field("vocabulary_size", pa.int64(), nullable=False),
            pa.field("vocabulary_hash", pa.string(), nullable=False),
        ]
    ),
    "segments": pa.schema(
        [
            pa.field("subject_id", pa.int64(), nullable=False),
            pa.field("tier", pa.int32(), nullable=False),
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("tokens", pa.int64(), nullable=False),
            pa.field("sum", pa.uint64(), nullable=False),
        ]
    ),
}
