"""Sentences of clinical texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.clinifuse.sentences import sentences_of


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Heart is normal. No effusion.", ["Heart is normal.", "No effusion."]),
        (
            "  FINDINGS:\nLungs are\nclear.\n\nIMPRESSION:\nNo change\n",
            ["FINDINGS:\nLungs are\nclear.", "IMPRESSION:\nNo change"],
        ),
        ("Nodule of 2.5 cm. Compare to Dr. Smith vs. prior!", ["Nodule of 2.5 cm.", "Compare to Dr. Smith vs. prior!"]),
        ("1. No effusion. 2. Stable.", ["1. No effusion.", "2.", "Stable."]),
        ("1. No effusion.\n2. Stable.", ["1. No effusion.", "2. Stable."]),
        ("Seen e.g. at night? Yes (twice.) Then none", ["Seen e.g. at night?", "Yes (twice.)", "Then none"]),
        ("", []),
        ("   \n ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    begins, ends = sentences_of(text)
    assert [text[begin:end] for begin, end in zip(begins, ends, strict=True)] == sentences


@given(st.text(alphabet="aB1. \n?!)", max_size=80))
def test_no_letter_is_lost_and_none_is_in_two(text: str) -> None:
    begins, ends = sentences_of(text)
    assert all(begin < end for begin, end in zip(begins, ends, strict=True))
    assert sorted([*begins, *ends]) == [place for pair in zip(begins, ends, strict=True) for place in pair]
    assert "".join(text[begin:end] for begin, end in zip(begins, ends, strict=True)).split() is not None
    kept = "".join(text[begin:end] for begin, end in zip(begins, ends, strict=True))
    assert "".join(kept.split()) == "".join(text.split())
