"""What a configuration says of notes, and how they are found and read."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, ValidationInfo, model_validator

from extractors.extractor import KEPT, Extractor, ModalitySettings
from extractors.note.vocabulary import each_once, folder_of, has_vocabulary, load_vocabulary, vocabulary_files
from extractors.note_rule import NoteRule
from extractors.reading import Reading, TableReading, laid_over
from extractors.source import SOURCES, Source, load_source
from warehouse.configuration import LocatedPath, located

NOTED = (
    "tokens_cut", "mojibake", "stored_early", "time_unreadable", "no_visit", "id_repeated", "of_visit", "addendum",
    "parent_absent", "exact_copies", "near_copies",
)  # fmt: skip
MARKS = 2  # of a window's tokens: [CLS] before the text, [SEP] behind it


class NoteSettings(ModalitySettings):
    """Tables of notes below `path`, or one DuckDB file there; or text files, and a table that names them.

    Attributes:
        source: a built-in source, or a source's YAML file, whose rules `note` say which tables hold notes.
        rules: such rules by table, instead of a source's, or laid over them.
        reading: how this site wrote its tables and text files, laid over what the source says of it.
        partial: not all text files that a table names are there. Without it, one that is missing stops the run before
            any work.
        tokenizer: a folder with vocab.txt, or with a WordPiece tokenizer.json, for encoders that name none and have
            none with their weights. Without any, words are cut into letters, three at a time: for demonstrations.
        vocabularies: such folders, null for letters, one for each vocabulary that an encoder reads; a run fills them
            in.
        window: tokens of one window, the two marks around the text included; BERT has places for 512.
        stride: tokens from the start of one window to that of the next; windows overlap where it is less than they
            hold.
        at_most: windows of one note; `geometry.tokens_cut` counts the tokens behind the last.
        summaries: whether all summaries of a visit are taken, or the one that was stored last.
        near: notes are near copies where so much of their shingles of five tokens is the same (Jaccard).
        keep_text: the texts of usable notes are part of a release, in `texts/`; only with a `deid.mode` that allows it.
    """

    source: str | None = None
    rules: dict[str, NoteRule] = Field(default_factory=dict)
    reading: Reading = Reading()
    partial: bool = False
    tokenizer: LocatedPath | None = None
    vocabularies: tuple[LocatedPath | None, ...] = ()
    window: int = Field(default=512, ge=8, le=8192)
    stride: int = Field(default=384, ge=1)
    at_most: int = Field(default=8, ge=1, le=1000)
    summaries: Literal["all", "last"] = "all"
    near: float = Field(default=0.9, ge=0.8, le=1)
    keep_text: bool = False

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, raw: Any, info: ValidationInfo) -> Any:
        """A source's file by its whole path, the encoders' tokenizers, and the vocabularies of all of them."""
        if not isinstance(raw, dict):
            return raw
        filled = dict(raw)
        source = raw.get("source")
        if isinstance(source, str) and not (SOURCES / f"{source}.yaml").is_file():
            filled["source"] = str(located(source, info))
        usual = None if raw.get("tokenizer") is None else located(raw["tokenizer"], info)
        encoders = []
        if isinstance(raw.get("encoders"), list):
            encoders = filled["encoders"] = [_with_tokenizer(each, usual, info) for each in raw["encoders"]]
        elif "encoder" in raw:
            filled["encoder"] = _with_tokenizer(raw["encoder"], usual, info)
            encoders = [filled["encoder"]]
        reading = [each for each in encoders if isinstance(each, dict) and not each.get("imported")]
        if reading:
            filled["vocabularies"] = each_once(_folder(each, info) for each in reading)
        return filled

    @model_validator(mode="after")
    def _fits(self) -> "NoteSettings":
        if self.stride > self.window - MARKS:
            raise ValueError(f"stride is {self.window - MARKS} tokens at most: more would leave text out")
        for encoder in getattr(self, "all_encoders", ()):  # of a run's block, which has some
            if encoder.pretrained and encoder_folder(encoder) is None:
                raise ValueError(
                    f"{encoder.name} needs `tokenizer`, the folder of the vocabulary that it was trained with"
                )
        return self

    @cached_property
    def described_by(self) -> Source:
        """The source, or one without tables."""
        if self.source is None:
            return Source(name="notes", subject="subject_id", tables={})
        return load_source(self.source)

    @cached_property
    def note_rules(self) -> dict[str, NoteRule]:
        """The rules of every table of notes, each with its subject's column."""
        source = self.described_by
        rules = {
            table: rule if rule.subject else rule.model_copy(update={"subject": source.subject})
            for table, rule in source.note.items()
        }
        return {**rules, **self.rules}

    def reading_of(self, table: str) -> TableReading:
        """How a table is written."""
        return laid_over(self.described_by.reading_of(table), self.reading.of_table(table))

    @property
    def tables(self) -> Mapping[str, Path]:
        """The source's YAML and the vocabulary, by their keys."""
        found: dict[str, Path] = {}
        if self.source is not None and not (SOURCES / f"{self.source}.yaml").is_file():
            found["source"] = Path(self.source)
        for number, folder in enumerate(self.cut_by):
            if folder is not None:
                found |= {f"vocabularies.{number}/{path.name}": path for path in vocabulary_files(folder)}
        return found

    @property
    def cut_by(self) -> tuple[Path | None, ...]:
        """The folders of the vocabularies that notes are cut by; None stands for letters."""
        return self.vocabularies or (self.tokenizer,)

    @property
    def cut(self) -> str:
        """The name of the first of them."""
        return load_vocabulary(self.cut_by[0]).name

    @property
    def keeps_texts(self) -> bool:
        """Whether texts become part of a release."""
        return self.keep_text

    @property
    def room(self) -> int:
        """Tokens of text in a window."""
        return self.window - MARKS


class TextEncoder(Protocol):
    """What notes need to know of an encoder's configuration."""

    tokenizer: Path | None
    weights: Path | None


def encoder_folder(encoder: TextEncoder) -> Path | None:
    """The folder of an encoder's vocabulary: the one that it names, else its weights'; None where it has neither."""
    if encoder.tokenizer is not None or encoder.weights is None:
        return encoder.tokenizer
    return folder_of(encoder.weights)


def _folder(encoder: dict[str, Any], info: ValidationInfo) -> Path | None:
    """The same of an encoder as it stands in a file."""
    for key in ("tokenizer", "weights"):
        if isinstance(encoder.get(key), str | Path):
            path: Path = located(encoder[key], info)
            return folder_of(path) if key == "weights" else path
    return None


def _with_tokenizer(encoder: Any, usual: Path | None, info: ValidationInfo) -> Any:
    """An encoder, as it stands in a file, with the usual tokenizer where it has no vocabulary of its own."""
    if usual is None or not isinstance(encoder, dict) or encoder.get("imported") or encoder.get("tokenizer"):
        return encoder
    folder = _folder(encoder, info)
    return encoder if folder is not None and has_vocabulary(folder) else {**encoder, "tokenizer": str(usual)}


# A window is 2 KB, and costs nothing once its note's tokens are read.
NOTE = Extractor(
    NoteSettings,
    "extractors.note.index:index",
    "extractors.note.read:read_windows",
    units_a_batch=16,
    check="extractors.note.check:check",
    reads="tables with a column of text (CSV, Parquet, DuckDB), and text files that such a table names",
    foreign="refused_not_note",
    matches=("note_id", "patient_id"),
    text="extractors.note.read:read_text_of",
    tokens="extractors.note.read:read_tokens_of",
    keeps=True,
    noted=NOTED,
    private_geometry=frozenset(("stamp", KEPT, "place")),
    keyed_geometry=frozenset(("note", "parent", "copied_from")),
)
