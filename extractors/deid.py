"""De-identification: one key, one whole-week date offset a subject, keyed hashes of every identifier.

Sources: HIPAA 45 CFR 164.514 (what identifies), DICOM PS3.15 Annex E (consistent UIDs, modified longitudinal dates).
"""

import hashlib
import os
import shlex
import socket
import subprocess
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from extractors.ids import known_ids
from warehouse.arrays import I64, U64
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, make_folder

Mode = Literal["synthetic", "limited", "expert", "safe_harbor_year"]
MAX_WEEKS = 104
# Where a machine's key is, if not in the private folder beside the root: itself in hexadecimal, a file that holds it,
# or a command that prints it. At most one of them is set.
KEY_VARIABLES = ("TIMELOOM_KEY", "TIMELOOM_KEY_FILE", "TIMELOOM_KEY_COMMAND")
_COMMAND_SECONDS = 60
KEY_BYTES = 32
# Of SHA-256.
_BLOCK_BYTES = 64
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


class KeyedHash:
    """HMAC-SHA-256 (RFC 2104) of many short texts under one key, in a third of the time that `hmac.digest` takes: what
    the hash makes of the key is worked out once."""

    def __init__(self, key: bytes) -> None:
        block = (hashlib.sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
        self._inner, self._outer = (hashlib.sha256(bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C))

    def digests(self, domain: str, texts: Iterable[str]) -> list[bytes]:
        """The hash of each text, 32 bytes. Texts of two domains have nothing in common."""
        inner, outer = self._inner.copy(), self._outer
        inner.update(f"{domain}\0".encode())
        digests: list[bytes] = []
        for text in texts:
            first, second = inner.copy(), outer.copy()
            first.update(text.encode())
            second.update(first.digest())
            digests.append(second.digest())
        return digests

    def numbers(self, domain: str, texts: Iterable[str]) -> U64:
        """The same as numbers (n, 4) of 64 bits."""
        return np.frombuffer(b"".join(self.digests(domain, texts)), ">u8").astype(np.uint64).reshape(-1, 4)


class Deidentifier:
    """Maps raw identifiers to the release's; the same raw value always gives the same result under one key."""

    def __init__(self, config: DeidConfig, key: bytes) -> None:
        if config.mode == "safe_harbor_year":
            raise TimeloomError(
                "deid.mode safe_harbor_year allows no date finer than a year, and timelines need them",
                remedy="use `limited` under a data use agreement, or `expert`",
            )
        self.config = config
        self._hash = KeyedHash(key)

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
        return f"{self._number('fingerprint'):016x}"

    @property
    def row_seed(self) -> int:
        """Seeds the hashes of raw rows that segments hold: without it, trying every id would find the right one."""
        return self._number("row")

    def _number(self, domain: str) -> int:
        return int(self._hash.numbers(domain, [""])[0, 0])

    def _identifiers(self, domain: str, raw: pl.Series) -> pl.Series:
        """int64 ids of texts, null where one is missing."""
        return self._of_texts(domain, raw, lambda hashes: (hashes >> np.uint64(1)).astype(np.int64))

    def _offset_days(self, raw: pl.Series) -> pl.Series:
        def days(hashes: U64) -> I64:
            weeks = (hashes % np.uint64(2 * MAX_WEEKS)).astype(np.int64) - MAX_WEEKS
            return 7 * np.where(weeks < 0, weeks, weeks + 1)

        return self._of_texts("offset", raw, days)

    def _of_texts(self, domain: str, raw: pl.Series, function: Callable[[U64], I64]) -> pl.Series:
        """What a function makes of the hashes of texts, null where one is missing."""
        present = raw.is_not_null()
        made = pl.Series(function(self._hash.numbers(domain, raw.drop_nulls().to_list())[:, 0]), dtype=pl.Int64)
        if present.all():
            return made
        return pl.Series([None], dtype=pl.Int64).new_from_index(0, len(raw)).scatter(present.arg_true(), made)

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
        return self._by_distinct_value(raw, partial(self._identifiers, "subject"))

    def subject_checks(self, raw: pl.Series) -> pl.DataFrame:
        """Distinct `subject_id` and a second hash of the raw id, `check`: two raw ids that share the first do not share
        both. Under `keep` ids cannot collide, and the check is 0."""
        if self.config.subject_ids == "keep":
            ids = self.subject_ids(raw).drop_nulls().unique()
            return pl.DataFrame({"subject_id": ids, "check": pl.zeros(len(ids), dtype=pl.Int64, eager=True)})
        distinct = known_ids(raw).drop_nulls().unique()
        hashes = (self._hash.numbers("subject", distinct.to_list())[:, :2] >> np.uint64(1)).astype(np.int64)
        return pl.DataFrame({"subject_id": hashes[:, 0], "check": hashes[:, 1]})

    def visit_ids(self, raw: pl.Series) -> pl.Series:
        """int64 ids of raw visit ids, null where missing; under `keep`, what is no integer is hashed."""
        hashed = partial(self._identifiers, "visit")
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
            days = self._by_distinct_value(subjects, self._offset_days)
        return (days.cast(pl.Int64) * 86_400_000_000).cast(pl.Duration("us"))

    def item_key(self, identity: str) -> str:
        """The key of an image: 32 hexadecimal digits, a keyed hash of its UIDs and content."""
        return self._hash.digests("item", [identity])[0][:16].hex()


def _kept(raw: pl.Series) -> pl.Series:
    """Ids that are integers; null where one is none."""
    ids = raw.cast(pl.Int64, strict=False)
    return ids if ids.null_count() == raw.null_count() else known_ids(raw).cast(pl.Int64, strict=False)
