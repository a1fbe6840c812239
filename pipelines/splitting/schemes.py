"""Split schemes: the fractions of train, tuning and held_out."""

from pydantic import Field, model_validator

from warehouse.configuration import Settings


class SplitConfig(Settings):
    """Fractions of train, tuning and held_out subjects."""

    train: float = Field(ge=0, le=1)
    tuning: float = Field(ge=0, le=1)
    held_out: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _whole(self) -> "SplitConfig":
        if abs(self.train + self.tuning + self.held_out - 1) > 1e-9:
            raise ValueError("the fractions do not add up to 1")
        if self.train == 0:
            raise ValueError("train is empty: vocabularies are fitted on it")
        return self


# The fractions that the papers give: MEHRT 85/5/10, the multimodal EHR model 80/10/10, CliniFuse 95/2.5/2.5.
SCHEMES = {
    "mehrt": SplitConfig(train=0.85, tuning=0.05, held_out=0.10),
    "multimodal": SplitConfig(train=0.80, tuning=0.10, held_out=0.10),
    "clinifuse": SplitConfig(train=0.95, tuning=0.025, held_out=0.025),
}
