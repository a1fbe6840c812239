"""What every outcome of the ledger means, in one line for a reader of the report; docs/quality.md has more."""

CONFLICTS = {
    "before_birth": "dated before the patient's birth",
    "after_death": "dated after the patient's death",
    "end_before_start": "the end of a visit, dated before its start",
    "overlapping_visit": "a visit that starts before an earlier one of its table has ended",
    "further_birth_or_death": "a second birth or death of one patient, left out; the first stands",
}
PARTIAL = {
    "unparsable_time": "one of the row's times cannot be read; its other events stand",
    "unparsable_available_time": "when it became known cannot be read; see availability",
    "unknown_available_time": "when it became known is not recorded; see availability",
}
QUARANTINED = {
    "bad_subject_id": "no patient id, or none that can be used",
    "unparsable_time": "its time cannot be read",
    "missing_time": "it has no time",
    "missing_code": "what happened is empty",
    "no_rule_applies": "no rule of the source applies to it",
    "malformed_row": "the row does not have the columns of its table",
    "unmapped_table": "the source does not name its table",
    "duplicate_row": "equal to an earlier row in every column",
    "further_birth_or_death": "makes nothing but a second birth or death",
    "outside_limit": "its patient is outside this trial run",
}
