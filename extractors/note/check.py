"""What can be known to be wrong with notes before any work."""

import json
from pathlib import Path

from extractors.note.rows import rows_of
from extractors.note.settings import NoteSettings, folder_of
from extractors.note.tables import ASKED_FOR, files_of, open_table
from extractors.note.texts import text_path
from extractors.note.tokens import load_tokens, vocabulary_of
from warehouse.errors import TimeloomError


def check(settings: NoteSettings) -> None:
    """Holds the rules against the tables, the tables against the files that they name, and loads the vocabulary.

    Raises:
        TimeloomError: no rule says which tables hold notes; one is missing, lacks a column, or names files that are not
            there; the tokenizer has no vocabulary, or a larger one than its model.
    """
    if not settings.note_rules:
        raise TimeloomError(
            f"{ASKED_FOR} does not say which tables hold notes",
            remedy=f"give {ASKED_FOR}.source, a source that has `note` rules, or {ASKED_FOR}.rules",
        )
    _check_vocabulary(settings)
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


def _check_vocabulary(settings: NoteSettings) -> None:
    tokens = load_tokens(settings.tokenizer)
    folders = {settings.tokenizer: None} if settings.tokenizer else {}
    encoders = getattr(settings, "all_encoders", ())  # of a run's block, which has some
    for encoder in encoders:
        if encoder.weights is None:
            continue
        folder = folder_of(encoder.weights)
        folders[folder] = None
        if not vocabulary_of(folder) or load_tokens(folder).digest == tokens.digest:
            continue
        if len(encoders) > 1:
            raise TimeloomError(
                f"the encoder {encoder.called} of notes was trained with another vocabulary than {ASKED_FOR}.tokenizer",
                remedy="notes are cut into one vocabulary's tokens: encoders of another need a root of their own",
            )
        raise TimeloomError(
            f"{ASKED_FOR}.tokenizer is not the one that lies with the encoder's weights",
            remedy=f"leave {ASKED_FOR}.tokenizer out, or give the encoder's folder",
        )
    for folder in folders:
        _check_sizes(settings, folder / "config.json", tokens.size)


def _check_sizes(settings: NoteSettings, model: Path, size: int) -> None:
    """Holds a vocabulary of so many pieces, and a window, against a model's config.json, where there is one."""
    if not model.is_file():
        return
    try:
        said = json.loads(model.read_text(encoding="utf-8"))
        places, known = int(said.get("max_position_embeddings", 512)), int(said.get("vocab_size", size))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TimeloomError(
            f"config.json of {ASKED_FOR}.tokenizer is none of a BERT model", remedy="copy the model's folder again"
        ) from error
    if size > known:
        raise TimeloomError(
            f"the vocabulary of {ASKED_FOR}.tokenizer has {size:,} pieces, and its model {known:,}",
            remedy="give the vocabulary that the model was trained with",
        )
    if settings.window > places:
        raise TimeloomError(
            f"{ASKED_FOR}.window is {settings.window} tokens, and the encoder has places for {places}",
            remedy=f"set {ASKED_FOR}.window to {places} or less",
        )
