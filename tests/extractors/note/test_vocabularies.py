"""Notes cut by several vocabularies at once: each encoder is given what its own tokenizer makes, whoever stands beside
it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extractors.items import CUT, CUTS, FoundItem, UnitRequest, cut_in
from extractors.note.read import NO_TOKEN, read_tokens_of, read_windows
from extractors.note.vocabulary import Marks, each_once, load_vocabulary
from tests.support.notes import found_in, write_discharge

PIECES = ["no", "pain", "cough", "##s", "##ing", "seen", "on", "cafe", "5", "/", ".", ",", "a", "##n"]
OTHER_MARKS = Marks("<pad>", "<unk>", "<s>", "</s>", "<mask>")
TEXTS = {
    "1": "Seen on 5/5. No pains, no coughing; Caf\u00e9 and caf\u00e9, PAIN. \u4e2d\u6587 " * 6,
    "2": "no pain",
    "3": "Fever.\n\nOn: a\tpain",
}
OF_MARKS = "<s> is no mark </s> of a text"
WINDOW, STRIDE = 16, 10


def uncased(folder: Path) -> Path:
    """As BERT's own: lower case, accents taken off."""
    return written(folder, [*Marks(), *PIECES], do_lower_case=True)


def cased(folder: Path) -> Path:
    """Larger, with other ids, case and accents."""
    words = ["[PAD]", *(f"[unused{number}]" for number in range(1, 40)), *Marks()[1:], "Seen", "Caf\u00e9"]
    return written(folder, [*words, "PA", "##IN", *reversed(PIECES), "No", "\u4e2d"], do_lower_case=False)


def renamed(folder: Path) -> Path:
    """With marks of other names, and Chinese signs that are no words."""
    marks: dict[str, Any] = {**OTHER_MARKS._asdict(), "sep_token": {"content": "</s>", "__type": "AddedToken"}}
    words = [*PIECES[::2], *OTHER_MARKS, *PIECES[1::2]]
    return written(folder, words, do_lower_case=True, strip_accents=False, tokenize_chinese_chars=False, **marks)


def written(folder: Path, words: list[str], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    rows = [{"note_id": name, "text": text, "hadm_id": int(name)} for name, text in TEXTS.items()]
    others = [{"note_id": "empty", "text": "___"}, {"note_id": "marks", "text": OF_MARKS}]
    return write_discharge(tmp_path / "tables", [*rows, *others])


def notes_of(tables: Path, *vocabularies: Path | None) -> dict[str, FoundItem]:
    kept = tables.with_name("-".join(["kept", *(folder.name if folder else "letters" for folder in vocabularies)]))
    settings = {"source": "mimic-iv", "window": WINDOW, "stride": STRIDE, "at_most": 100}
    found = found_in(tables, kept, vocabularies=vocabularies, **settings)
    return {item.names["note_id"]: item for item in found}


def units_of(tables: Path, item: FoundItem, way: str) -> list[list[int]]:
    """The windows of a note as an encoder of one vocabulary is given them, without what they are filled up with."""
    request = UnitRequest(tables, item.paths, cut_in(item.geometry, way))
    batches = list(read_windows(request, 2))
    assert sum(len(batch.pixels) for batch in batches) == item.geometry[CUTS][way]["units"]
    return [[token for token in unit if token != NO_TOKEN] for batch in batches for unit in batch.pixels.tolist()]


def test_each_encoder_is_given_the_ids_of_its_own_tokenizer(tables: Path, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    folders = [uncased(tmp_path / "uncased"), cased(tmp_path / "cased"), renamed(tmp_path / "renamed")]
    notes = notes_of(tables, *folders)
    refused = {name for name, item in notes.items() if item.verdict != "ok"}
    assert refused == {"empty"} and notes["empty"].verdict == "refused_empty"
    seen = set()
    for folder in folders:
        theirs, way = BertTokenizer.from_pretrained(folder), load_vocabulary(folder).name
        for name, text in TEXTS.items():
            expected, found = theirs(text, add_special_tokens=False)["input_ids"], units_of(tables, notes[name], way)
            room = WINDOW - 2
            starts = range(0, 1 + max(0, len(expected) - room + STRIDE - 1), STRIDE)
            windows = [expected[start : start + room] for start in starts]
            assert found == [[theirs.cls_token_id, *window, theirs.sep_token_id] for window in windows]
            request = UnitRequest(tables, notes[name].paths, cut_in(notes[name].geometry, way))
            assert read_tokens_of(request).tolist() == expected
            seen.add((name, json.dumps(found)))
    assert len(seen) == 3 * len(TEXTS), "no two vocabularies give the same ids"


def test_a_text_writes_no_mark_whatever_it_is_called(tables: Path, tmp_path: Path) -> None:
    folder = renamed(tmp_path / "renamed")
    vocabulary = load_vocabulary(folder)
    marks = {vocabulary.pieces[mark] for mark in OTHER_MARKS if mark != "<unk>"}
    (unit,) = units_of(tables, notes_of(tables, folder)["marks"], vocabulary.name)
    assert (unit[0], unit[-1]) == vocabulary.around and not marks & set(unit[1:-1])


def test_a_vocabulary_beside_it_changes_nothing_of_the_first(tables: Path, tmp_path: Path) -> None:
    first, second = uncased(tmp_path / "uncased"), cased(tmp_path / "cased")
    way, other = load_vocabulary(first).name, load_vocabulary(second).name
    alone, both, turned = notes_of(tables, first), notes_of(tables, first, second), notes_of(tables, second, first)
    assert alone.keys() == both.keys() == turned.keys()
    for name in TEXTS:
        items = alone[name], both[name], turned[name]
        assert len({item.identity for item in items}) == 1, "an encoder that comes or goes makes no other item"
        cuts = [item.geometry[CUTS] for item in items]
        assert cuts[0] == {way: cuts[1][way]} and cuts[1] == cuts[2] and cuts[1].keys() == {way, other}
        assert units_of(tables, items[0], way) == units_of(tables, items[1], way) == units_of(tables, items[2], way)
        assert [item.geometry[CUT] for item in items] == [way, way, other]
        assert (items[1].units_expected, items[1].geometry["tokens"]) == (cuts[1][way]["units"], cuts[1][way]["tokens"])
        left_out = (CUT, CUTS, "kept")
        said = [{key: value for key, value in item.geometry.items() if key not in left_out} for item in items[:2]]
        assert said[0] == said[1]
        with pytest.raises(KeyError):
            cut_in(items[0].geometry, other)


def test_where_text_of_a_window_stands_is_told_by_each_vocabulary(tables: Path, tmp_path: Path) -> None:
    folders = [uncased(tmp_path / "uncased"), None]
    notes, places = notes_of(tables, *folders), {}
    for folder in folders:
        way = load_vocabulary(folder).name
        request = UnitRequest(tables, notes["1"].paths, cut_in(notes["1"].geometry, way))
        places[way] = np.concatenate([batch.places for batch in read_windows(request, 3)])
        assert places[way][0, 1] == 0 and places[way][-1, 2] == len(TEXTS["1"].rstrip())
        assert (places[way][1:, 1] <= places[way][:-1, 2]).all(), "no letter is between two windows"
    assert len({len(found) for found in places.values()}) == 2


def test_one_vocabulary_in_two_folders_is_cut_once(tables: Path, tmp_path: Path) -> None:
    folders = [uncased(tmp_path / "a"), uncased(tmp_path / "b"), cased(tmp_path / "c")]
    assert each_once([*folders, None]) == [folders[0], folders[2], None]
    assert notes_of(tables, *folders)["1"].geometry[CUTS].keys() == {load_vocabulary(at).name for at in folders[1:]}
    (folders[1] / "vocab.txt").unlink()
    assert each_once(folders) == folders, "what cannot be read is another's for all that is known"
