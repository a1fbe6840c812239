"""What a configuration says of waves, and how they are found and read."""

from pydantic import Field

from extractors.extractor import Extractor, ModalitySettings


class WavesSettings(ModalitySettings):
    """Recordings in text files, which name their subject and time themselves.

    Attributes:
        window: samples of one unit.
    """

    window: int = Field(default=32, gt=0)


WAVES = Extractor(WavesSettings, "extractors.waves.index:index", "extractors.waves.index:read_waves", units_a_batch=4)
