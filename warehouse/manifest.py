"""The manifest: what a release holds, from what it was made, and whether it is whole."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from warehouse.errors import TimeloomError
from warehouse.files import sha256_json, write_json

FORMAT_VERSION = 1


class FileEntry(BaseModel):
    """One file of a release: `rows` is null for what is not a table."""

    model_config = ConfigDict(frozen=True)
    sha256: str
    bytes: int
    rows: int | None = None


class TaskEntry(BaseModel):
    """One task: reused by a later run whose task has the same fingerprint.

    Attributes:
        fingerprint: SHA-256 over stage, version, parameters and the hashes of the inputs.
        files: paths relative to the task's base directory.
        counts: what the stage counted; JSON, no patient's value.
    """

    model_config = ConfigDict(frozen=True)
    fingerprint: str
    files: dict[str, FileEntry]
    counts: dict[str, Any] = Field(default_factory=dict)


class Deidentification(BaseModel):
    """How identifiers and dates were treated; a declaration, not a claim of compliance."""

    model_config = ConfigDict(frozen=True)
    mode: str
    subject_ids: str
    dates: str
    key_fingerprint: str


class EncoderEntry(BaseModel):
    """Which encoder made a modality's vectors."""

    model_config = ConfigDict(frozen=True)
    label: str
    store: str
    dim: int
    weights_sha256: str | None = None


class ProfileEntry(BaseModel):
    """A token profile of the release."""

    model_config = ConfigDict(frozen=True)
    context: int
    vocabulary_hash: str
    vocabulary_size: int
    groups: int


class Manifest(BaseModel):
    """manifest.json. `content_hash` covers every file outside quality/, whatever made it and when."""

    model_config = ConfigDict(frozen=True)
    format_version: int = FORMAT_VERSION
    release_id: str
    parent: str | None
    created_at: str
    run_id: str
    buckets: int
    deid: Deidentification
    config_hash: str
    split_scheme: str
    split_hash: str
    encoders: dict[str, EncoderEntry]
    profiles: dict[str, ProfileEntry]
    stages: dict[str, int]
    sources: dict[str, str]
    verdicts: dict[str, dict[str, int]]
    content_hash: str
    tasks: dict[str, TaskEntry]
    files: dict[str, FileEntry]


def content_hash(files: dict[str, FileEntry]) -> str:
    """One hash of a release's data: every file but the report's."""
    return sha256_json({path: entry.sha256 for path, entry in files.items() if not path.startswith("quality/")})


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes manifest.json, atomically."""
    write_json(path, manifest.model_dump(mode="json"))


def read_manifest(path: Path) -> Manifest:
    """Reads manifest.json.

    Raises:
        TimeloomError: missing, not JSON, or of a newer format.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw.get("format_version", 0) > FORMAT_VERSION:
            raise TimeloomError(f"the release {raw.get('release_id')} has a newer format", remedy="upgrade timeloom")
        return Manifest.model_validate(raw)
    except (OSError, ValueError, ValidationError) as error:
        raise TimeloomError(
            f"the manifest of release {path.parent.name} is missing or damaged",
            remedy="point `current` at an older release",
        ) from error
