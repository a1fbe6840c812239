"""WordPiece tokens of texts, by the library `tokenizers`, as BERT's own tokenizer makes them.

A run of underscores, which de-identification left where something stood, is one token, [MASK]: BERT knows it as a word
that is not shown.
"""

import json
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from warehouse.errors import TimeloomError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

PAD, UNKNOWN, FIRST, LAST, BLANK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
BLANKS = "_{3,}"
_STANDS_FOR_BLANK = "\ue000"  # of Unicode's private use: no text has it behind BERT's own cleaning
_MOST_IDS = 1 << 24  # as encoders are given them in float32
_TEXT_BYTES = 1 << 20  # of texts that are tokens at a time: their encodings take thirtyfold


@dataclass(frozen=True)
class Tokens:
    """A tokenizer, the ids of the marks around a text, how many ids there are, and what tells it from others."""

    tokenizer: "Tokenizer"
    first: int
    last: int
    size: int
    digest: str

    def of(self, texts: list[str]) -> "Iterator[tuple[int, list[Encoding]]]":
        """Texts' tokens without marks, some texts at a time: the place of the first of them, and theirs."""
        start, size = 0, 0
        for place, text in enumerate(texts):
            size += len(text)
            if size > _TEXT_BYTES or place + 1 == len(texts):
                yield start, self.tokenizer.encode_batch(texts[start : place + 1], add_special_tokens=False)
                start, size = place + 1, 0


def load_tokens(folder: Path | None) -> Tokens:
    """The tokenizer of a folder; without one, of letters.

    Raises:
        TimeloomError: no vocabulary, or none of BERT's.
    """
    return _load(None, ()) if folder is None else _load(folder, _state(folder))


def _state(folder: Path) -> tuple[int, ...]:
    from extractors.note.settings import vocabulary_files
    from warehouse.files import signature_of

    return tuple(number for path in vocabulary_files(folder) for number in signature_of(path.stat()))


@lru_cache(maxsize=4)
def _load(folder: Path | None, seen: tuple[int, ...]) -> Tokens:
    """As `load_tokens`; `seen` is what the file system says of the folder's files."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = letters() if folder is None else vocabulary_of(folder)
    if folder is not None and not vocabulary:
        raise TimeloomError(
            f"modalities.note.tokenizer has no vocabulary: {folder.name} holds neither vocab.txt nor a tokenizer.json "
            "of WordPiece",
            remedy="give the folder of a BERT model, with its own vocab.txt",
        )
    rules = _Rules() if folder is None else _rules_of(folder, vocabulary)
    lacking = [mark for mark in (PAD, UNKNOWN, FIRST, LAST, BLANK) if mark not in vocabulary]
    if lacking:
        raise TimeloomError(
            f"the vocabulary of modalities.note.tokenizer lacks {lacking[0]}",
            remedy="give the folder of a BERT model, with its own vocab.txt",
        )
    shaping: list[Any] = [vocabulary, rules.lowercase, BLANKS]
    if rules != _Rules(rules.lowercase, rules.lowercase):  # as few models have them
        shaping += [rules.strip_accents, rules.chinese]
    digest = sha256(json.dumps(shaping).encode()).hexdigest()
    tokenizer = Tokenizer(models.WordPiece({**vocabulary, _STANDS_FOR_BLANK: vocabulary[BLANK]}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.BertNormalizer(
                lowercase=rules.lowercase, strip_accents=rules.strip_accents, handle_chinese_chars=rules.chinese
            ),
            normalizers.Replace(Regex(BLANKS), _STANDS_FOR_BLANK),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_STANDS_FOR_BLANK, "isolated"), pre_tokenizers.BertPreTokenizer()]
    )
    size = max(vocabulary.values()) + 1
    return Tokens(tokenizer, vocabulary[FIRST], vocabulary[LAST], size, digest)


def letters() -> dict[str, int]:
    """A vocabulary without any file: single signs of ASCII, and letters by one, two and three."""
    signs = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = ["".join(parts) for size in (1, 2, 3) for parts in product(string.ascii_lowercase, repeat=size)]
    words = [PAD, UNKNOWN, FIRST, LAST, BLANK, *signs, *pieces[26:]]
    words += [f"##{piece}" for piece in (*pieces, *string.digits)]
    return {word: number for number, word in enumerate(words)}


def vocabulary_of(folder: Path) -> dict[str, int]:
    """The WordPiece vocabulary of a model's folder; empty where it has none.

    Raises:
        TimeloomError: it is damaged.
    """
    plain, whole = folder / "vocab.txt", folder / "tokenizer.json"
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
            "the vocabulary of modalities.note.tokenizer cannot be read", remedy="copy the model's folder again"
        ) from error
    return {}


class _Rules(NamedTuple):
    """What BERT's normalizer does to a text, by the names of transformers' settings."""

    lowercase: bool = True
    strip_accents: bool = True
    chinese: bool = True  # a sign of Chinese is a word


def _rules_of(folder: Path, vocabulary: Mapping[str, int]) -> _Rules:
    """By tokenizer_config.json, or the normalizer of tokenizer.json; else with case where the vocabulary has any."""
    said, normalizer = _json(folder / "tokenizer_config.json"), _json(folder / "tokenizer.json").get("normalizer")
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        normalizer = {}

    def rule(name: str, in_normalizer: str, usual: bool) -> bool:
        given = (value for value in (said.get(name), normalizer.get(in_normalizer)) if isinstance(value, bool))
        return next(given, usual)

    cased = any(word != word.lower() for word in vocabulary if not word.startswith("["))
    lowercase = rule("do_lower_case", "lowercase", not cased)
    return _Rules(
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
            f"{path.name} of modalities.note.tokenizer is no JSON", remedy="copy the model's folder again"
        ) from error
    return found if isinstance(found, dict) else {}
