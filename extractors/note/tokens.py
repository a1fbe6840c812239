"""WordPiece tokens of texts, by the library `tokenizers`, as BERT's own tokenizer makes them.

A run of underscores, which de-identification left where something stood, is one token, [MASK]: BERT knows it as a word
that is not shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from extractors.note.vocabulary import BLANKS, Vocabulary, load_vocabulary

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_STANDS_FOR_BLANK = "\ue000"  # of Unicode's private use: no text has it behind BERT's own cleaning
_TEXT_BYTES = 1 << 20  # of texts that are tokens at a time: their encodings take thirtyfold


@dataclass(frozen=True)
class Tokens:
    """A vocabulary, and what cuts texts into its tokens."""

    vocabulary: Vocabulary
    tokenizer: "Tokenizer"

    def of(self, texts: list[str]) -> "Iterator[tuple[int, list[Encoding]]]":
        """Texts' tokens without marks, some texts at a time, the same texts whatever the vocabulary: the place of the
        first of them, and theirs."""
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
    return _tokens_of(load_vocabulary(folder))


@lru_cache(maxsize=16)
def _tokens_of(vocabulary: Vocabulary) -> Tokens:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    pieces, marks, rules = vocabulary.pieces, vocabulary.marks, vocabulary.rules
    known = {**pieces, _STANDS_FOR_BLANK: pieces[marks.mask_token]}
    tokenizer = Tokenizer(models.WordPiece(known, unk_token=marks.unk_token))
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
    return Tokens(vocabulary, tokenizer)
