"""Everything that a release is held to."""

from validation.gate.expectation import Expectation
from warehouse.shards.file import MAX_SEGMENTS

VERDICT_PATTERN = r"^(?:ok|(?:refused|failed)_[a-z0-9_]+)$"
EXPECTATIONS: tuple[Expectation, ...] = (
    Expectation("events", "rows", "The release holds events.", low=1, high=None),
    Expectation(
        "events", "schema_breaks", "Every file of events, codes and splits keeps its MEDS 0.4 schema.", kind="number"
    ),
    Expectation(
        "events", "misplaced_subjects", "Each patient's events lie in one bucket, the one that belongs to the patient."
    ),
    Expectation("events", "rows_out_of_order", "Each patient's events stand together, in the order of time."),
    Expectation("events", "empty_codes", "Every event says what happened: no code is empty."),
    Expectation("events", "undescribed_codes", "Every code of the events is listed in metadata/codes.parquet."),
    Expectation("events", "repeated_codes", "No code is listed twice in metadata/codes.parquet."),
    Expectation(
        "events",
        "available_before_time",
        "No fact is available before the moment it describes, whether that is recorded or estimated.",
    ),
    Expectation("events", "unavailable", "Every event with a time says when it could be known."),
    Expectation(
        "events",
        "availability_unknown",
        "Every event with a time says how that is known: recorded, time or estimated.",
    ),
    Expectation("events", "availability_of_static", "No static fact claims to have become available."),
    Expectation("events", "value_flag_unknown", "Every flag of a value is one of those that are documented."),
    Expectation("events", "value_flag_alone", "A flag stands only where number and text of the value both stand."),
    Expectation("events", "conflict_unknown", "Every conflict of an event is one of those that are documented."),
    Expectation("events", "conflicts_uncounted", "The ledger counts the conflicts that events bear."),
    Expectation(
        "events",
        "lags_changed",
        "Every usual delay of the release before is kept as it was.",
        kind="number",
    ),
    Expectation("events", "unknown_items", "Every image event points at an image that the release lists."),
    Expectation(
        "events", "implausible_times", "No event is dated before 1850 or after the last plausible day.", "warning"
    ),
    Expectation("events", "born_or_dead_twice", "No patient is born twice or dies twice.", "warning"),
    Expectation("ledger", "*", "The ledger names at least one raw table.", kind="number", low=1, high=None),
    Expectation(
        "ledger",
        "difference",
        "In every table, raw rows are exactly events, static, reference and quarantined rows together.",
    ),
    Expectation(
        "ledger", "events_unexplained", "Every table's events are in the release, as many as the ledger says it made."
    ),
    Expectation(
        "ledger",
        "quarantined_share",
        "No table has more than 1 % of its rows in quarantine.",
        "warning",
        "derived",
        high=0.01,
    ),
    Expectation(
        "ledger", "quarantine_unlisted", "quarantine.parquet lists the rows that the ledger counts, reason by reason."
    ),
    Expectation(
        "ledger",
        "estimated_share",
        "In no table the availability of more than 5 % of its events is an estimate.",
        "warning",
        "derived",
        high=0.05,
    ),
    Expectation("items", "duplicate_keys", "No two images share a key."),
    Expectation(
        "items", "ok_incomplete", "Every usable image has a patient, a time, a key and the encoder that read it."
    ),
    Expectation(
        "items", "ok_units_off", "Every slice or tile of a usable image is encoded, or counted as one that failed."
    ),
    Expectation("items", "ok_events_off", "Every usable image is one event of its patient, and only one."),
    Expectation(
        "items",
        "verdict",
        "Every image has a verdict: usable, refused as another kind, or failed.",
        kind="text",
        pattern=VERDICT_PATTERN,
    ),
    Expectation(
        "items",
        "failed_share",
        "In every modality, at most 10 % of the images that should be good have failed.",
        "warning",
        "derived",
        high=0.1,
    ),
    Expectation(
        "splits", "subjects_without_split", "Every patient has a split, but for those that are set aside by a merge."
    ),
    Expectation("splits", "subjects_in_two_splits", "No patient is in two splits."),
    Expectation("splits", "published_differently", "The published splits are those of the append-only ledger."),
    Expectation(
        "splits",
        "ledgers_changed",
        "Every row of a split ledger is as a run has written it, and none is gone.",
        kind="number",
    ),
    Expectation("splits", "subjects_moved", "Every patient has the split of the release before."),
    Expectation(
        "splits",
        "share_z",
        "Each split has the share of patients that its scheme asks for, within three standard errors.",
        "warning",
        "derived",
        high=3,
    ),
    Expectation(
        "splits",
        "length_ks_ratio",
        "Timelines are as long in every split as in train (Kolmogorov-Smirnov, alpha 1e-6).",
        kind="derived",
        high=1,
    ),
    Expectation(
        "splits",
        "length_smd_ratio",
        "The mean log length is as in train: |SMD| at most 0.02, or five standard errors where they are more.",
        kind="derived",
        high=1,
    ),
    Expectation(
        "splits",
        "interval_smd_ratio",
        "The mean interval is as in train: |SMD| at most 0.02, or five standard errors where they are more.",
        kind="derived",
        high=1,
    ),
    Expectation(
        "splits",
        "modality_ratio",
        "CT and slides are as frequent as in train: within 0.1 points, or five standard errors where they are more.",
        kind="derived",
        high=1,
    ),
    Expectation(
        "splits",
        "match_ratio",
        "Length and interval are as alike as in MEHRT: |SMD| at most 0.02 from 4,000 patients a split on, else |z| 2.",
        "warning",
        "derived",
        high=1,
    ),
    Expectation("shards", "token_difference", "Every patient's tokens that a plan keeps are in its shards, once."),
    Expectation("shards", "drop_difference", "Tokens that a plan leaves out are those that it declares."),
    Expectation("shards", "misplaced_segments", "Each piece of a timeline begins where the one before ends."),
    Expectation(
        "shards", "changed_subjects", "Every token of the shards has the id, type, time and image of the timeline's."
    ),
    Expectation("shards", "foreign_subjects", "No split's shards hold a patient of another split."),
    Expectation(
        "shards", "misplaced_tiers", "Token budgets are nested: each is a prefix of the one fixed order of patients."
    ),
    Expectation("shards", "budget_differences", "Token budgets hold what the manifest says."),
    Expectation(
        "shards", "budgets_short", "Train has as many tokens as every token budget asks for.", "warning", "number"
    ),
    Expectation(
        "shards",
        "budget_ks_ratio",
        "Timelines are as long in every token budget as in train (Kolmogorov-Smirnov, alpha 0.001).",
        "warning",
        "derived",
        high=1,
    ),
    Expectation(
        "shards", "malformed_packs", "Every pack has its profile's length, and its segments add up to its tokens."
    ),
    Expectation("shards", "ids_out_of_range", "Every token of the shards is in the vocabulary."),
    Expectation(
        "shards", "misplaced_images", "Every image place in the shards is where a token stands for such an image."
    ),
    Expectation("shards", "dangling_images", "Every image place in the shards points at a usable image."),
    Expectation("shards", "foreign_images", "Every image in the shards is one of the patient in whose timeline it is."),
    Expectation(
        "shards",
        "max_segments",
        f"No pack holds more than {MAX_SEGMENTS} segments.",
        kind="number",
        high=MAX_SEGMENTS,
    ),
    Expectation(
        "shards",
        "fill_judged",
        "Packs are at least 90 % full, in splits of 20 packs and more.",
        "warning",
        "number",
        low=0.9,
        high=None,
    ),
)
