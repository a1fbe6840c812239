"""What a run advises where something was lost."""

import polars as pl

from validation.areas.contents import AREA


def test_the_advice_can_be_pasted_into_a_shell() -> None:
    remedy = AREA.expectations[0].remedy
    assert remedy is not None
    lost = pl.DataFrame({"kind": ["namespace"] * 2, "option": ["BLOOD PRESSURE", "LOINC"]})
    assert remedy(lost).endswith(": --accept-loss 'BLOOD PRESSURE' --accept-loss LOINC")
