"""Small raw files that are followed as large ones are."""

import pytest

from extractors.tables import content_blocks, csv_reader
from pipelines.aligning import continued, segments


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Files of some kilobytes are followed, in blocks of some rows."""
    patch.setattr(csv_reader, "COMPILED_FROM", 0)
    patch.setattr(content_blocks, "LEAST_BYTES", 100)
    patch.setattr(content_blocks, "USUAL_BYTES", 400)
    patch.setattr(content_blocks, "MOST_BYTES", 1500)
    patch.setattr(content_blocks, "_FIRST_SCAN", 700)
    patch.setattr(content_blocks, "_READ_BYTES", 900)
    patch.setattr(continued, "_COPIED_ROWS", 50)
    patch.setattr(segments, "GATHERED_ROWS", 150)
