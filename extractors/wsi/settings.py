"""What a configuration says of slides, and how they are found and read."""

from pydantic import Field

from extractors.extractor import Extractor, ModalitySettings
from extractors.wsi.tissue import MARKER_COLOURS, MarkerColour


class WsiSettings(ModalitySettings):
    """Slides have no subject or time of their own: a crosswalk gives both, by `path`, or by what stands in DICOM ones.

    Attributes:
        max_failed_tiles: with a larger share of undecodable tissue tiles a slide leaves no vector.
        max_blurred_tiles: with a larger share of tissue tiles out of focus a slide is refused; 1 refuses none.
        max_pen_tiles: with a larger share of tiles with a marker's ink a slide is refused; 1 refuses none.
        marker_colours: inks that are looked for; leave out the colours of the site's stains.
    """

    max_failed_tiles: float = Field(default=0.1, ge=0, lt=1)
    max_blurred_tiles: float = Field(default=1.0, ge=0, le=1)
    max_pen_tiles: float = Field(default=1.0, ge=0, le=1)
    marker_colours: tuple[MarkerColour, ...] = MARKER_COLOURS


# Neighbouring tiles share what is decoded for them.
WSI = Extractor(
    WsiSettings,
    "extractors.wsi.index:index",
    "extractors.wsi.index:read_slide_units",
    units_a_batch=64,
    too_many_failed="failed_too_many_bad_tiles",
    needs_crosswalk=True,
    reads="DICOM slides and files that OpenSlide knows, as SVS, NDPI, MRXS, SCN, BIF, VMS, CZI and tiled TIFF",
    matches=("path", "study_uid", "series_uid", "accession_number"),
    private_geometry=frozenset(("stamp", "state", "judged")),
    takes_known=True,
)
