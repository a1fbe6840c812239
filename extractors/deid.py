"""De-identification: one key, one whole-week date offset a subject, keyed hashes of every identifier.

Sources: HIPAA 45 CFR 164.514 (what identifies), DICOM PS3.15 Annex E (consistent UIDs, modified longitudinal dates).
"""

import hashlib
import hmac
import os
import shlex
import socket
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from extractors.ids import known_ids
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, make_folder

Mode = Literal["synthetic", "limited", "expert", "safe_harbor_year"]
MAX_WEEKS = 104
# Where a machine's key is, if not in the private folder beside the root: itself in hexadecimal, a file that holds it,
# or a command that prints it. At most one of them is set.
KEY_VARIABLES = ("TIMELOOM_KEY", "TIMELOOM_KEY_FILE", "TIMELOOM_KEY_COMMAND")
_COMMAND_SECONDS = 60
KEY_BYTES = 32
SYNTHETIC_KEY = b"timeloom: simulated patients need no secret"


class DeidConfig(BaseModel):
    """How the release is de-identified; recorded in it as a declaration, never as a claim of compliance.

    Attributes:
        mode: what the site declares the release to be. `safe_harbor_year` forbids dates finer than a year, which no
            timeline can do without, so it is refused.
        subject_ids: `hash` by the key, or `keep` integers that are pseudonyms already.
        dates: `shift` by the subject's offset, or `keep` dates that are shifted already.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    mode: Mode = "expert"
    subject_ids: Literal["hash", "keep"] = "hash"
    dates: Literal["shift", "keep"] = "shift"

    @property
    def allows_texts(self) -> bool:
        """Whether a release may hold texts: of simulated patients, or of a limited data set whose dates are shifted
        already. A date inside a text stays as it is, and would give away by how much the others were shifted."""
        return self.mode == "synthetic" or (self.mode == "limited" and self.dates == "keep")


def load_key(config: DeidConfig, private: Path, *, create: bool = False) -> bytes:
    """The site's key, kept outside the root: where one of KEY_VARIABLES says, else in a file with mode 0600.

    Args:
        create: make one where there is none, as for a new root. Anywhere else another key would give every subject
            another id, another date and another split.

    Raises:
        TimeloomError: the key is missing, or what is there is no key.
    """
    if config.mode == "synthetic":
        return SYNTHETIC_KEY
    named = [name for name in KEY_VARIABLES if os.environ.get(name)]
    if len(named) > 1:
        raise TimeloomError(f"{named[0]} and {named[1]} are both set", remedy="name the key in one way")
    if named:
        return _said_by(named[0], os.environ[named[0]])
    path = private / "deid.key"
    if not path.exists() and not create:
        raise TimeloomError(
            "the private folder beside the root has no de-identification key",
            remedy=f"restore deid.key from backup, put the folder back beside the root, or set {KEY_VARIABLES[1]}",
        )
    if not path.exists():
        make_folder(private, mode=0o700)
        with atomic_write(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(os.urandom(KEY_BYTES).hex() + "\n", encoding="ascii")
    return _key_of(_text_of(path), "the de-identification key", "restore deid.key from backup")


@cache
def _said_by(variable: str, value: str) -> bytes:
    """The key, by the way that a variable of KEY_VARIABLES names it; once a process, for a command may be slow."""
    text: str | None = value
    if variable == "TIMELOOM_KEY_FILE":
        text = _text_of(Path(value))
    elif variable == "TIMELOOM_KEY_COMMAND":
        try:
            # Neither its output nor its words are passed on: either may hold the key.
            done = subprocess.run(
                shlex.split(value), stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_SECONDS, check=True
            )
            text = done.stdout.decode("ascii")
        except (OSError, ValueError, subprocess.SubprocessError):
            text = None
    return _key_of(text, f"the de-identification key that {variable} names", f"mend {variable}")


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None


def _key_of(text: str | None, what: str, remedy: str) -> bytes:
    try:
        key = bytes.fromhex((text or "no key").strip())
    except ValueError:
        raise TimeloomError(f"{what} is unreadable", remedy) from None  # the error quotes what it could not read
    if len(key) < KEY_BYTES:
        raise TimeloomError(f"{what} is too short", remedy)
    return key


class Deidentifier:
    """Maps raw identifiers to the release's; the same raw value always gives the same result under one key."""

    def __init__(self, config: DeidConfig, key: bytes) -> None:
        if config.mode == "safe_harbor_year":
            raise TimeloomError(
                "deid.mode safe_harbor_year allows no date finer than a year, and timelines need them",
                remedy="use `limited` under a data use agreement, or `expert`",
            )
        self.config = config
        self._key = key

    @classmethod
    def held_to(cls, config: DeidConfig, private: Path, fingerprint: str) -> "Deidentifier":
        """With the key of this machine, as a task has it, which knows that key's fingerprint alone.

        Raises:
            TimeloomError: there is no key, or it is not the root's.
        """
        found = cls(config, load_key(config, private))
        if found.key_fingerprint != fingerprint:
            raise TimeloomError(
                f"the de-identification key on {socket.gethostname()} is not the one that the root was made with",
                remedy="give that machine the root's key, docs/engines.md, and run again; nothing was made with it",
            )
        return found

    @property
    def key_fingerprint(self) -> str:
        """Tells two keys apart without telling anything about them."""
        return self._digest("fingerprint", "")[:8].hex()

    @property
    def row_seed(self) -> int:
        """Seeds the hashes of raw rows that segments hold: without it, trying every id would find the right one."""
        return int.from_bytes(self._digest("row", "")[:8], "big")

    def _digest(self, domain: str, value: str) -> bytes:
        return hmac.digest(self._key, f"{domain}\0{value}".encode(), hashlib.sha256)

    def _identifier(self, domain: str, value: str) -> int:
        return int.from_bytes(self._digest(domain, value)[:8], "big") >> 1

    def _offset_days(self, value: str) -> int:
        weeks = int.from_bytes(self._digest("offset", value)[:8], "big") % (2 * MAX_WEEKS) - MAX_WEEKS
        return 7 * (weeks if weeks < 0 else weeks + 1)

    def _by_distinct_value(self, raw: pl.Series, function: Callable[[pl.Series], pl.Series]) -> pl.Series:
        """What a function makes of ids in one spelling, int64; it is asked for distinct ones."""
        # Exports stand in the order of their subjects: a run is mapped once.
        runs = raw.cast(pl.String).rle()
        values, lengths = runs.struct.field("value"), runs.struct.field("len")
        distinct = values.drop_nulls().unique()
        made = function(known_ids(distinct))
        of_runs = values.replace_strict(distinct, made, default=None, return_dtype=pl.Int64)
        places = np.repeat(np.arange(len(runs), dtype=np.uint32), lengths.to_numpy())
        return of_runs.gather(pl.Series(places)).alias(raw.name)

    def subject_ids(self, raw: pl.Series) -> pl.Series:
        """int64 ids of raw text ids, in whatever spelling; null where an id is missing, or no integer under `keep`."""
        if self.config.subject_ids == "keep":
            return _kept(raw)
        return self._by_distinct_value(raw, _each(lambda value: self._identifier("subject", value)))

    def subject_checks(self, raw: pl.Series) -> pl.DataFrame:
        """Distinct `subject_id` and a second hash of the raw id, `check`: two raw ids that share the first do not share
        both. Under `keep` ids cannot collide, and the check is 0."""
        if self.config.subject_ids == "keep":
            ids = self.subject_ids(raw).drop_nulls().unique()
            return pl.DataFrame({"subject_id": ids, "check": pl.zeros(len(ids), dtype=pl.Int64, eager=True)})
        distinct = known_ids(raw).drop_nulls().unique()
        digests = [self._digest("subject", value) for value in distinct.to_list()]
        return pl.DataFrame(
            {
                "subject_id": [int.from_bytes(digest[:8], "big") >> 1 for digest in digests],
                "check": [int.from_bytes(digest[8:16], "big") >> 1 for digest in digests],
            },
            schema={"subject_id": pl.Int64, "check": pl.Int64},
        )

    def visit_ids(self, raw: pl.Series) -> pl.Series:
        """int64 ids of raw visit ids, null where missing; under `keep`, what is no integer is hashed."""
        hashed = _each(lambda value: self._identifier("visit", value))
        if self.config.subject_ids == "hash":
            return self._by_distinct_value(raw, hashed)
        kept = raw.cast(pl.Int64, strict=False)
        if kept.null_count() == raw.null_count():
            return kept

        def kept_or_hashed(ids: pl.Series) -> pl.Series:
            # Value by value, so that what a visit becomes does not depend on the others in its block.
            numbers = ids.cast(pl.Int64, strict=False)
            return numbers.zip_with(numbers.is_not_null(), hashed(ids.set(numbers.is_not_null(), None)))

        return self._by_distinct_value(raw, kept_or_hashed)

    def offsets(self, raw_subjects: pl.Series) -> pl.Series:
        """The shift of each subject's dates as durations: whole weeks, never 0, at most two years either way."""
        if self.config.dates == "keep":
            days = pl.Series(raw_subjects.name, [0], dtype=pl.Int64).new_from_index(0, len(raw_subjects))
        else:
            # Under `keep`, "007" and "7" are one subject, and so have one offset.
            kept = self.config.subject_ids == "keep"
            subjects = _kept(raw_subjects).cast(pl.String) if kept else raw_subjects
            days = self._by_distinct_value(subjects, _each(self._offset_days))
        return (days.cast(pl.Int64) * 86_400_000_000).cast(pl.Duration("us"))

    def item_key(self, identity: str) -> str:
        """The key of an image: 32 hexadecimal digits, a keyed hash of its UIDs and content."""
        return self._digest("item", identity)[:16].hex()


def _each(function: Callable[[str], int]) -> Callable[[pl.Series], pl.Series]:
    """A function of one id as one of many; null stays null."""
    return lambda ids: pl.Series(
        [None if value is None else function(value) for value in ids.to_list()], dtype=pl.Int64
    )


def _kept(raw: pl.Series) -> pl.Series:
    """Ids that are integers; null where one is none."""
    ids = raw.cast(pl.Int64, strict=False)
    return ids if ids.null_count() == raw.null_count() else known_ids(raw).cast(pl.Int64, strict=False)
