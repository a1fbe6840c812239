"""What a root is made with and keeps."""

import json
import shutil

from extractors.deid import Deidentifier, load_key
from extractors.events.joins import SCRATCH
from pipelines.config import RunConfig
from warehouse.errors import TimeloomError
from warehouse.files import write_json
from warehouse.layout import Layout

# A change would move subjects, give them other ids, or mix a trial with the whole.
FIXED = {
    "buckets": "number of buckets",
    "pack_groups": "number of pack groups",
    "limit": "--limit (a trial keeps to a root of its own)",
    "subject_ids": "deid.subject_ids",
    "dates": "deid.dates",
    "key": "de-identification key",
}


def forget_scratch(layout: Layout) -> None:
    """Removes what a killed run left beside the root of rows that asked a large lookup: they are raw."""
    for folder in layout.private.glob(f"{SCRATCH}*"):
        shutil.rmtree(folder, ignore_errors=True)


def bind_root(layout: Layout, config: RunConfig, limit: int | None, *, new: bool) -> None:
    """Writes down what a new root is made with, or holds a run against it; a new root gets its key.

    Raises:
        TimeloomError: the run asks for something else, or the key is lost.
    """
    key = load_key(config.deid, layout.private, create=new)
    settings = {
        "buckets": config.buckets,
        "pack_groups": config.pack_groups,
        "limit": limit,
        "subject_ids": config.deid.subject_ids,
        "dates": config.deid.dates,
        "key": Deidentifier(config.deid, key).key_fingerprint,
    }
    if new:
        write_json(layout.settings, settings)
        return
    fixed = json.loads(layout.settings.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if fixed.get(name) != value:
            raise TimeloomError(
                f"{layout.root.name} was made with another {FIXED[name]}", remedy="keep it, or use another root"
            )
