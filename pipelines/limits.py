"""When a run stops rather than publish, and when the report warns."""

from typing import Annotated

from pydantic import Field

from warehouse.configuration import Settings

Share = Annotated[float, Field(ge=0, le=1)]


class LimitsConfig(Settings):
    """Shares that a night may reach and not exceed; where it does, nothing is published.

    Attributes:
        unparsable_times: of the times in one column of one table.
        malformed: of a table's rows, those that do not have the columns of their table.
        quarantined: of a table's rows, those that made nothing, malformed ones among them.
        missed_joins: of the rows that ask another table, those whose key it does not have. Of joins that the source can
            do without (`optional`) the report warns.
        fewest: rows (or events, subjects, images, tokens) below which these three shares, and losses, are not judged;
            what is whole is: a table of which every row is quarantined (unless its share is 1), one that is gone.
        loss: of what a table, a modality or a namespace held in the releases before, what may be gone.
        window: releases before, the parent among them, that a release is compared with.
        unknown_subjects_warning: of the subjects of a table, or of a modality's images, those that no other table
            knows; from here on the report warns.
        unknown_subjects: the same; from here on nothing is published.
        fewer_numbers: of the values in one column of one table, how much the share of numbers may fall against the
            release before; beyond it the report warns.
        without_tokens: of train's clinical events, those of a namespace that makes no token in a profile; from here on
            nothing is published, unless the profile names it under `left_out`.
    """

    unparsable_times: Share = 0.001
    malformed: Share = 0.1
    quarantined: Share = 0.5
    missed_joins: Share = 0.5
    fewest: int = Field(default=50, ge=1)
    loss: Share = 1 / 3
    window: int = Field(default=7, ge=1)
    unknown_subjects_warning: Share = 0.01
    unknown_subjects: Share = 0.2
    fewer_numbers: Share = 0.05
    without_tokens: Share = 0.01
