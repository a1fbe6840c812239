"""What some codes lead to, taken from what all codes of a release do: the same as if it were worked out for them."""

import numpy as np
import polars as pl
import pytest

from pipelines.profiles import built_in
from pipelines.profiles.lexicon import Lexicon, make_lexicon
from tests.pipelines.profiles.test_random import CODES, PARENTS

EVERY = pl.Series(sorted(CODES))
KNOWN = pl.DataFrame({"code": list(PARENTS), "parent_codes": list(PARENTS.values())})
ARRAYS = (
    "wanted", "demographic", "only_numeric", "image", "first", "count", "start", "length", "types", "values"
)  # fmt: skip


def fact_names(lexicon: Lexicon) -> list[str]:
    return lexicon.facts.tokens.gather(lexicon.facts.token[lexicon.demographic & (lexicon.count > 0)]).to_list()


@pytest.mark.parametrize("name", ["mehrt", "ethos", "ethos-paper"])
@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_some_codes_of_a_release_lead_to_what_they_do_alone(name: str, step: int) -> None:
    profile, codes = built_in(name), EVERY.gather_every(step, step - 1)
    found, alone = make_lexicon(EVERY, profile, KNOWN).among(codes), make_lexicon(codes, profile, KNOWN)
    assert found is not None
    for field in ARRAYS:
        np.testing.assert_array_equal(getattr(found, field), getattr(alone, field), err_msg=field)
    assert found.groups.equals(alone.groups)
    assert found.tokens.to_list() == alone.tokens.to_list()
    assert found.reasons.to_list() == alone.reasons.to_list()
    assert fact_names(found) == fact_names(alone)


def test_a_code_that_the_release_lacks_leads_nowhere() -> None:
    assert make_lexicon(EVERY, built_in("mehrt"), KNOWN).among(pl.Series(["ICD10CM/I10", "ICD10CM/Z00"])) is None
