"""The WordPiece vocabulary of a model's folder, its marks, and what BERT's normalizer does to a text before.

It is known without the library that cuts texts, so that a run can be planned by it.
"""

import json
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from warehouse.errors import TimeloomError
from warehouse.files import signature_of

BLANKS = "_{3,}"
WEIGHTS = ".safetensors"
_PLAIN, _WHOLE, _SAID = "vocab.txt", "tokenizer.json", "tokenizer_config.json"
_MARKS, _ADDED = "special_tokens_map.json", "added_tokens.json"
_MOST_IDS = 1 << 24  # as encoders are given them in float32


class Marks(NamedTuple):
    """Tokens that no text writes, by the names of transformers' settings."""

    pad_token: str = "[PAD]"
    unk_token: str = "[UNK]"
    cls_token: str = "[CLS]"
    sep_token: str = "[SEP]"
    mask_token: str = "[MASK]"


class Rules(NamedTuple):
    """What BERT's normalizer does to a text, by the names of transformers' settings."""

    lowercase: bool = True
    strip_accents: bool = True
    chinese: bool = True  # a sign of Chinese is a word


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Ids by their pieces, marks, rules, and what tells all of that from another's."""

    pieces: Mapping[str, int]
    marks: Marks
    rules: Rules
    digest: str

    @property
    def name(self) -> str:
        """What its tokens are called in items, files and the names of stores."""
        return self.digest[:16]

    @property
    def around(self) -> tuple[int, int]:
        """The ids of the marks before a window's text and behind it."""
        return self.pieces[self.marks.cls_token], self.pieces[self.marks.sep_token]

    @property
    def size(self) -> int:
        """How many ids there are."""
        return max(self.pieces.values()) + 1


def folder_of(weights: Path) -> Path:
    """The folder of a model, by its weights: that, or a file in it."""
    return weights.parent if weights.suffix == WEIGHTS else weights


def vocabulary_files(folder: Path) -> list[Path]:
    """The files of a tokenizer's folder that say how it reads; those that are there."""
    names = (_PLAIN, _WHOLE, _SAID, _MARKS, _ADDED, "config.json")
    return [folder / name for name in names if (folder / name).is_file()]


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder has a file with a vocabulary, whatever stands in it."""
    return (folder / _PLAIN).is_file() or (folder / _WHOLE).is_file()


def each_once(folders: Iterable[Path | None]) -> list[Path | None]:
    """Folders, less those whose vocabulary is that of one before; one that cannot be read stands for itself."""
    found: dict[Any, Path | None] = {}
    for folder in folders:
        try:
            found.setdefault(load_vocabulary(folder).digest, folder)
        except TimeloomError:
            found.setdefault(folder, folder)
    return list(found.values())


def load_vocabulary(folder: Path | None) -> Vocabulary:
    """The vocabulary of a folder; without one, of letters.

    Raises:
        TimeloomError: no vocabulary, or none of BERT's, or with words that are added to it.
    """
    return _load(None, ()) if folder is None else _load(folder, _state(folder))


def _state(folder: Path) -> tuple[int, ...]:
    return tuple(number for path in vocabulary_files(folder) for number in signature_of(path.stat()))


@lru_cache(maxsize=16)
def _load(folder: Path | None, seen: tuple[int, ...]) -> Vocabulary:
    """As `load_vocabulary`; `seen` is what the file system says of the folder's files."""
    if folder is None:
        return _described(letters(), Marks(), Rules())
    pieces, of = pieces_of(folder), f"tokenizer {folder.name} of modalities.note"
    if not pieces:
        raise TimeloomError(
            f"the {of} has no vocabulary: it holds neither vocab.txt nor a tokenizer.json of WordPiece",
            remedy="give the folder of a BERT model, with its own vocab.txt",
        )
    marks = _marks_of(folder)
    lacking = [mark for mark in marks if mark not in pieces]
    if lacking:
        raise TimeloomError(
            f"the vocabulary of the {of} lacks {lacking[0]}",
            remedy="give the folder of a BERT model, with its own vocab.txt",
        )
    added = _added_to(folder) - set(marks)
    if added:
        raise TimeloomError(
            f"the {of} reads {len(added):,} words whole, which WordPiece would cut",
            remedy="such tokenizers are not known: give the folder of a BERT model without added tokens",
        )
    return _described(pieces, marks, _rules_of(folder, pieces))


def _described(pieces: Mapping[str, int], marks: Marks, rules: Rules) -> Vocabulary:
    """A vocabulary, with the digest of all that decides its tokens."""
    shaping: list[Any] = [pieces, rules.lowercase, BLANKS]
    if rules != Rules(rules.lowercase, rules.lowercase):  # as few models have them
        shaping += [rules.strip_accents, rules.chinese]
    if marks != Marks():
        shaping.append(marks)
    return Vocabulary(pieces, marks, rules, sha256(json.dumps(shaping).encode()).hexdigest())


def letters() -> dict[str, int]:
    """A vocabulary without any file: single signs of ASCII, and letters by one, two and three."""
    signs = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = ["".join(parts) for size in (1, 2, 3) for parts in product(string.ascii_lowercase, repeat=size)]
    words = [*Marks(), *signs, *pieces[26:]]
    words += [f"##{piece}" for piece in (*pieces, *string.digits)]
    return {word: number for number, word in enumerate(words)}


def pieces_of(folder: Path) -> dict[str, int]:
    """The pieces of a model's folder; empty where it has none.

    Raises:
        TimeloomError: they are damaged.
    """
    plain, whole = folder / _PLAIN, folder / _WHOLE
    try:
        if plain.is_file():
            lines = plain.read_text(encoding="utf-8").split("\n")
            return {line.rstrip("\r"): number for number, line in enumerate(lines) if line.strip()}
        model = _json(whole).get("model")
        if isinstance(model, dict) and model.get("type", "WordPiece") == "WordPiece":
            words = model.get("vocab")
            numbered = dict(words) if isinstance(words, dict) else {}
            if not all(isinstance(number, int) and 0 <= number < _MOST_IDS for number in numbered.values()):
                raise ValueError("ids are whole numbers")
            return numbered
    except (OSError, ValueError) as error:
        raise TimeloomError(
            f"the vocabulary of the tokenizer {folder.name} of modalities.note cannot be read",
            remedy="copy the model's folder again",
        ) from error
    return {}


def _marks_of(folder: Path) -> Marks:
    """By tokenizer_config.json or special_tokens_map.json; else BERT's."""
    said = {**_json(folder / _MARKS), **_json(folder / _SAID)}
    given = {name: said.get(name) for name in Marks._fields}
    texts = {name: mark.get("content") if isinstance(mark, dict) else mark for name, mark in given.items()}
    return Marks(**{name: text for name, text in texts.items() if isinstance(text, str)})


def _added_to(folder: Path) -> set[str]:
    """Words that transformers' tokenizer looks for before WordPiece cuts a text; the marks are among them."""
    decoder, listed = _json(folder / _SAID).get("added_tokens_decoder"), _json(folder / _WHOLE).get("added_tokens")
    tokens = [
        *(decoder.values() if isinstance(decoder, dict) else ()),
        *(listed if isinstance(listed, list) else ()),
    ]
    contents = {token.get("content") for token in tokens if isinstance(token, dict)}
    return {word for word in (*contents, *_json(folder / _ADDED)) if isinstance(word, str)}


def _rules_of(folder: Path, pieces: Mapping[str, int]) -> Rules:
    """By tokenizer_config.json, or the normalizer of tokenizer.json; else with case where the vocabulary has any."""
    said, normalizer = _json(folder / _SAID), _json(folder / _WHOLE).get("normalizer")
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        normalizer = {}

    def rule(name: str, in_normalizer: str, usual: bool) -> bool:
        given = (value for value in (said.get(name), normalizer.get(in_normalizer)) if isinstance(value, bool))
        return next(given, usual)

    cased = any(word != word.lower() for word in pieces if not word.startswith("["))
    lowercase = rule("do_lower_case", "lowercase", not cased)
    return Rules(
        lowercase,
        rule("strip_accents", "strip_accents", lowercase),
        rule("tokenize_chinese_chars", "handle_chinese_chars", True),
    )


def _json(path: Path) -> Mapping[str, Any]:
    """What a JSON file holds; nothing where it is away.

    Raises:
        TimeloomError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise TimeloomError(
            f"{path.name} of the tokenizer {path.parent.name} of modalities.note is no JSON",
            remedy="copy the model's folder again",
        ) from error
    return found if isinstance(found, dict) else {}
