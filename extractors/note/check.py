"""What can be known to be wrong with notes before any work."""

import json
from pathlib import Path

from extractors.note.rows import rows_of
from extractors.note.settings import NoteSettings, encoder_folder
from extractors.note.tables import ASKED_FOR, files_of, open_table
from extractors.note.texts import text_path
from extractors.note.vocabulary import folder_of, load_vocabulary, pieces_of
from warehouse.errors import TimeloomError


def check(settings: NoteSettings) -> None:
    """Holds the rules against the tables, the tables against the files that they name, and loads the vocabularies.

    Raises:
        TimeloomError: no rule says which tables hold notes; one is missing, lacks a column, or names files that are not
            there; the tokenizer has no vocabulary, or a larger one than its model.
    """
    if not settings.note_rules:
        raise TimeloomError(
            f"{ASKED_FOR} does not say which tables hold notes",
            remedy=f"give {ASKED_FOR}.source, a source that has `note` rules, or {ASKED_FOR}.rules",
        )
    _check_vocabularies(settings)
    tables = 0
    for table, rule in settings.note_rules.items():
        named, absent = 0, 0
        for file in files_of(settings, table, rule):
            tables += 1
            open_table(settings, file)
            if rule.file is not None:
                for rows in rows_of(settings, file):
                    paths = [text_path(name) for name in rows["content"]]
                    named += len(paths)
                    absent += sum(path is None or not (settings.path / path).is_file() for path in paths)
        if absent and (absent == named or not settings.partial):
            raise TimeloomError(
                f"{absent:,} of the {named:,} files that the table {table} of {ASKED_FOR} names are not there",
                remedy=f"see that {ASKED_FOR}.path is their folder, or set {ASKED_FOR}.partial: true",
            )
    if not tables:
        raise TimeloomError(
            f"no table of notes is below {ASKED_FOR}.path: {', '.join(settings.note_rules)}",
            remedy="give the folder that the tables lie in",
        )


def _check_vocabularies(settings: NoteSettings) -> None:
    """Each encoder's vocabulary against its model, and the general one against those that encoders read."""
    read = set()
    encoders = [encoder for encoder in getattr(settings, "all_encoders", ()) if encoder.imported is None]
    for encoder in encoders:
        folder = encoder_folder(encoder)
        vocabulary = load_vocabulary(folder)
        read.add(vocabulary.digest)
        trained_with = None if encoder.weights is None else folder_of(encoder.weights)
        if trained_with and pieces_of(trained_with) and load_vocabulary(trained_with).digest != vocabulary.digest:
            raise TimeloomError(
                f"the tokenizer of the encoder {encoder.called} of notes is not the one that lies with its weights",
                remedy="leave its `tokenizer` out, or give the folder of its weights",
            )
        for model in dict.fromkeys((folder, trained_with)):
            if model is not None:
                _check_sizes(settings, model, vocabulary.size)
    if settings.tokenizer is None:
        return
    usual = load_vocabulary(settings.tokenizer)
    if not encoders:
        _check_sizes(settings, settings.tokenizer, usual.size)
    elif usual.digest not in read:
        raise TimeloomError(
            f"no encoder reads {ASKED_FOR}.tokenizer: each has another vocabulary, of its own or with its weights",
            remedy=f"leave {ASKED_FOR}.tokenizer out, or give the encoder's folder",
        )


def _check_sizes(settings: NoteSettings, model: Path, size: int) -> None:
    """Holds a vocabulary of so many ids, and a window, against the config.json of a model's folder, if it has one."""
    if not (model / "config.json").is_file():
        return
    try:
        said = json.loads((model / "config.json").read_text(encoding="utf-8"))
        places, known = int(said.get("max_position_embeddings", 512)), int(said.get("vocab_size", size))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TimeloomError(
            f"{ASKED_FOR}: config.json of {model.name} is none of a BERT model", remedy="copy the model's folder again"
        ) from error
    if size > known:
        raise TimeloomError(
            f"{ASKED_FOR}: the vocabulary has {size:,} pieces, and its model {model.name} has {known:,}",
            remedy="give the vocabulary that the model was trained with",
        )
    if settings.window > places:
        raise TimeloomError(
            f"{ASKED_FOR}.window is {settings.window} tokens, and {model.name} has places for {places}",
            remedy=f"set {ASKED_FOR}.window to {places} or less",
        )
