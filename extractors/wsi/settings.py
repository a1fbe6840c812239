"""What a configuration says of slides, and how they are found and read."""

from pydantic import Field

from extractors.extractor import Extractor, ModalitySettings


class WsiSettings(ModalitySettings):
    """Slides have no subject or time of their own: a crosswalk by `path` gives both.

    Attributes:
        max_failed_tiles: with a larger share of undecodable tissue tiles a slide leaves no vector.
    """

    max_failed_tiles: float = Field(default=0.1, ge=0, lt=1)


# Neighbouring tiles share what is decoded for them.
WSI = Extractor(
    WsiSettings,
    "extractors.wsi.index:index",
    "extractors.wsi.index:read_slide_units",
    units_a_batch=64,
    too_many_failed="failed_too_many_bad_tiles",
    needs_crosswalk=True,
    private_geometry=frozenset(("stamp",)),
)
