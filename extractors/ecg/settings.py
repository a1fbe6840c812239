"""What a configuration says of ECGs, and how they are found and read."""

from typing import Literal

from pydantic import Field, field_validator

from extractors.ecg.leads import LEADS
from extractors.extractor import Extractor, ModalitySettings
from extractors.reading import known_zone

Assumed = Literal["units", "gain", "rate"]


class EcgSettings(ModalitySettings):
    """DICOM and MUSE name their patient; WFDB does not: a crosswalk gives subject and time by `path`, or by
    `patient_id`.

    Attributes:
        timezone: an IANA name: carts that state another UTC offset are converted to the site's wall clock.
        rate: samples a second that the encoder takes; signals of another rate are resampled.
        seconds: length of the window that the encoder takes; a shorter signal is one shorter window.
        least_seconds: a shorter signal is refused.
        most_windows: windows of one recording, from its start; what is left of a longer one is counted.
        leads: those that a recording must have, or that can be derived; the others are zeros where they are missing.
        accept_assumed: what a WFDB header may leave out, so that the format's own rule holds: `units` (millivolts),
            `gain` (200 a unit), `rate` (250 a second).
        checksums: a WFDB signal whose sum is not the header's is refused.
        most_missing: with a larger share of samples missing in one lead a recording is refused; fewer are filled in.
        most_flat: with a larger share of one lead in runs of a second without any change a recording is refused.
        most_clipped: with a larger share of one lead at its own highest or lowest value a recording is refused.
        cleaning: `neurokit`: NeuroKit2's default filters (0.5 Hz high-pass, mains hum), as CSFM was trained with.
    """

    timezone: str | None = None
    rate: Literal[100, 125, 200, 240, 250, 256, 400, 500, 1000] = 500
    seconds: float = Field(default=10.0, ge=1, le=60)
    least_seconds: float = Field(default=5.0, gt=0)
    most_windows: int = Field(default=6, ge=1, le=10_000)
    leads: tuple[str, ...] = LEADS
    accept_assumed: tuple[Assumed, ...] = ("units",)
    checksums: bool = True
    most_missing: float = Field(default=0.05, ge=0, lt=1)
    most_flat: float = Field(default=0.5, ge=0, le=1)
    most_clipped: float = Field(default=0.1, ge=0, le=1)
    cleaning: Literal["none", "neurokit"] = "none"

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return known_zone(name)

    @field_validator("leads")
    @classmethod
    def _standard(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in LEADS]
        if unknown or not names:
            raise ValueError(f"leads are some of {', '.join(LEADS)}" + (f", not {unknown[0]}" if unknown else ""))
        return tuple(name for name in LEADS if name in names)

    @property
    def samples(self) -> int:
        """Samples of a whole window."""
        return round(self.rate * self.seconds)


# A window of 12 leads is a quarter of a megabyte, and costs nothing once its recording is read.
ECG = Extractor(
    EcgSettings,
    "extractors.ecg.index:index",
    "extractors.ecg.read:read_ecg_units",
    units_a_batch=16,
    reads="WFDB records, DICOM waveforms and GE MUSE XML",
    foreign="refused_not_ecg",
    matches=("path", "patient_id"),
    private_geometry=frozenset(("stamp", "state", "judged")),
    takes_known=True,
)
