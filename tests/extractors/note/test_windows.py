"""Windows of notes: the tokens that BERT's own tokenizer makes, cut with overlap, and where their text stands."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extractors.items import FoundItem, UnitBatch, UnitRequest, VerdictError
from extractors.note.read import NO_TOKEN, read_windows, starts_of
from extractors.note.tokens import load_tokens
from extractors.note.vocabulary import letters, load_vocabulary
from tests.support.notes import found_in, write_discharge

WORDS = [
    "[PAD]",
    "[unused1]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "pain",
    "no",
    "pa",
    "##in",
    "##s",
    ",",
    ".",
    "caf",
    "##e",
    "_",
]


def model(folder: Path, words: list[str] = WORDS, config: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    return folder


def ids(folder: Path, text: str) -> list[int]:
    ((_, (encoding,)),) = load_tokens(folder).of([text])
    return list(encoding.ids)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No pain.", [7, 6, 12]),
        ("PAINS, caf\u00e9", [6, 10, 11, 13, 14]),
        ("no ___ pain", [7, 5, 6]),
        ("no____,pain", [7, 5, 11, 6]),
        ("__ pain", [15, 15, 6]),
        ("fever", [2]),
        ("[MASK]", [2, 2, 2]),  # a text cannot write a mark itself
        ("no\ue000pain", [2]),  # nor the sign that stands for a blank: BERT takes it out
        ("pa\x00in\ufffd no", [6, 7]),
    ],
)
def test_tokens_are_bert_s(tmp_path: Path, text: str, expected: list[int]) -> None:
    assert ids(model(tmp_path), text) == expected


def test_without_blanks_the_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    folder = model(tmp_path, [*letters()])
    theirs = BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True)
    for text in (
        "Seen on 5/6, BP 120/80; \u00dcber-caf\u00e9 \u2265 3\n\tand more_",
        "\u4e2d\u6587 and \ud55c",
        "x" * 120,
        "",
    ):
        assert ids(folder, text) == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("words", "config", "expected"),
    [
        (WORDS, "", [6]),
        ([*WORDS, "Pain"], "", [16]),
        ([*WORDS, "Pain"], '{"do_lower_case": true}', [6]),
        (WORDS, '{"do_lower_case": false}', [2]),
    ],
)
def test_case_is_the_model_s(tmp_path: Path, words: list[str], config: str, expected: list[int]) -> None:
    assert ids(model(tmp_path, words, config), "Pain") == expected


@pytest.mark.parametrize(
    ("files", "expected", "usual"),
    [
        ({}, [2, 16, 16], True),  # an accent goes with the case
        ({"tokenizer_config.json": '{"do_lower_case": true, "strip_accents": null}'}, [2, 16, 16], True),
        ({"tokenizer_config.json": '{"do_lower_case": true, "strip_accents": false}'}, [17, 16, 16], False),
        ({"tokenizer_config.json": '{"tokenize_chinese_chars": false}'}, [2, 2], False),
        ({"tokenizer.json": '{"normalizer": {"type": "BertNormalizer", "strip_accents": false}}'}, [17, 16, 16], False),
        ({"tokenizer.json": '{"normalizer": {"type": "BertNormalizer", "lowercase": false}}'}, [2, 16, 16], False),
    ],
)
def test_accents_and_chinese_are_the_model_s(
    tmp_path: Path, files: dict[str, str], expected: list[int], usual: bool
) -> None:
    words = [*WORDS, "\u4e2d", "f\u00fcr"]
    folder = model(tmp_path / "model", words)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    assert ids(folder, "F\u00fcr \u4e2d\u4e2d") == expected
    assert (load_vocabulary(folder).digest == load_vocabulary(model(tmp_path / "usual", words)).digest) is usual


def test_a_vocabulary_in_tokenizer_json_is_the_same(tmp_path: Path) -> None:
    import json

    plain = model(tmp_path / "plain")
    (tmp_path / "whole").mkdir()
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    content = json.dumps({"model": {"type": "WordPiece", "vocab": vocabulary}})
    (tmp_path / "whole" / "tokenizer.json").write_text(content, encoding="utf-8")
    assert load_vocabulary(tmp_path / "whole").digest == load_vocabulary(plain).digest


def naive_windows(tokens: int, room: int, stride: int, at_most: int) -> list[tuple[int, int]]:
    found = [(0, min(room, tokens))]
    while found[-1][1] < tokens and len(found) < at_most:
        found.append((found[-1][0] + stride, min(found[-1][0] + stride + room, tokens)))
    return found


@pytest.mark.parametrize("tokens", [1, 9, 10, 11, 13, 14, 15, 18, 100])
@pytest.mark.parametrize(("room", "stride"), [(10, 10), (10, 4), (10, 1), (6, 6)])
@pytest.mark.parametrize("at_most", [1, 2, 8, 200])
def test_windows_cover_the_note_from_its_start(tokens: int, room: int, stride: int, at_most: int) -> None:
    starts, behind = starts_of(tokens, room + 2, stride, at_most)
    windows = naive_windows(tokens, room, stride, at_most)
    assert starts.tolist() == [start for start, _ in windows]
    assert behind == tokens - windows[-1][1]


def whole(folder: Path, text: str, **settings: Any) -> tuple[FoundItem, UnitBatch]:
    write_discharge(folder / "tables", [{"note_id": "1", "text": text}])
    (item,) = found_in(folder / "tables", folder / "kept", source="mimic-iv", **settings)
    (batch,) = read_windows(UnitRequest(folder / "tables", item.paths, item.geometry), 1000)
    return item, batch


def test_units_are_tokens_between_marks_and_say_where_their_text_stands(tmp_path: Path) -> None:
    text = "\n".join(f"Line {number}: no ___ pain, \u00dcberweisung {number * number}." for number in range(40))
    item, batch = whole(tmp_path, text, window=20, stride=12, at_most=100)
    ((_, (encoding,)),) = load_tokens(None).of([text])
    windows = naive_windows(len(encoding.ids), 18, 12, 100)
    assert item.units_expected == len(windows) == len(batch.pixels) and item.geometry["tokens"] == len(encoding.ids)
    compared = 0
    for unit, place, (start, end) in zip(batch.pixels, batch.places, windows, strict=True):
        size = end - start
        assert unit[: size + 2].tolist() == [2, *encoding.ids[start:end], 3] and (unit[size + 2 :] == NO_TOKEN).all()
        begin = encoding.offsets[start - 1][1] if start else 0
        assert place.tolist() == [start, begin, encoding.offsets[end - 1][1]]
        if not encoding.tokens[start].startswith("##"):  # what stands there is what the window holds
            ((_, (again,)),) = load_tokens(None).of([text[place[1] : place[2]]])
            assert again.ids == encoding.ids[start:end]
            compared += 1
    assert batch.places[-1, 2] == len(text) and compared > len(windows) // 3


def test_what_is_behind_the_last_window_is_counted(tmp_path: Path) -> None:
    text = "no pain " * 50
    item, batch = whole(tmp_path, text, window=20, stride=18, at_most=2)
    assert (item.units_expected, len(batch.pixels)) == (2, 2)
    assert item.geometry["tokens_cut"] == item.geometry["tokens"] - 36 > 0
    assert "tokens_cut" not in whole(tmp_path / "more", text, window=20, stride=18, at_most=50)[0].geometry


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_spans_of_units_are_parts_of_the_whole(tmp_path: Path, size: int) -> None:
    item, batch = whole(tmp_path, "Seen again today. " * 60, window=16, stride=10, at_most=100)
    request = UnitRequest(tmp_path / "tables", item.paths, item.geometry, start=2, stop=9)
    parts = list(read_windows(request, size))
    assert np.array_equal(np.concatenate([part.pixels for part in parts]), batch.pixels[2:9])
    assert np.concatenate([part.indices for part in parts]).tolist() == [*range(2, 9)]


def test_a_table_that_changed_since_is_no_note_any_more(tmp_path: Path) -> None:
    item, _ = whole(tmp_path, "Seen.")
    request = UnitRequest(tmp_path / "tables", item.paths, item.geometry)
    table = tmp_path / "tables" / item.paths[0]
    table.write_bytes(table.read_bytes() + b"\n")
    with pytest.raises(VerdictError, match="failed_changed"):
        list(read_windows(request, 4))


def test_other_windows_are_another_item(tmp_path: Path) -> None:
    identities = {
        whole(tmp_path / str(number), "Seen.", **settings)[0].identity
        for number, settings in enumerate(({}, {"window": 64, "stride": 60}, {"stride": 100}, {"at_most": 3}))
    }
    assert len(identities) == 4
