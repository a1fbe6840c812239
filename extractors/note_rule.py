"""Which columns of a table make a note: its text or the file that holds it, whose it is, when it was written."""

from pydantic import Field, model_validator

from extractors.source_model import Columns, SourceModel
from extractors.time_rule import Time


class NoteDetails(SourceModel):
    """A table beside one of notes, with a row for each thing that is known of a note.

    Attributes:
        table: its name.
        key: the column with the note's id.
        name: the column that says what a row is about.
        value: the column with what is known.
        parent: what `name` says where `value` is the id of the note that this one is an addendum to.
    """

    table: str
    key: str
    name: str
    value: str
    parent: str


class NoteRule(SourceModel):
    """A table of notes, one a row; or an index of text files, one a row.

    Attributes:
        text: the column with the note's text.
        file: instead, the column with the path of its text file, below the folder of notes.
        id: the column that names the note; without it a text file is known by its path, and another note by its
            subject, time and text.
        subject: the column with the subject's id, where it is not the source's; absent where a crosswalk says it.
        visit: the column with the visit's id.
        kind: the column that says what kind of note it is.
        time: when it was charted, or what it reports on was done.
        available: when it was stored or signed, and could first be read. Without it a note can be read at `time`.
        parent: the column with the id of the note that this one is an addendum to.
        details: a table that says the same.
        addenda: values of `kind` that are addenda.
        summary: a visit has one such note, addenda apart; of several the configuration may take the last.
        optional: the table may be absent.
    """

    text: str | None = None
    file: str | None = None
    id: str | None = None
    subject: str | None = None
    visit: str | None = None
    kind: str | None = None
    time: Time | None = None
    available: Time | None = None
    parent: str | None = None
    details: NoteDetails | None = None
    addenda: Columns = Field(default_factory=list)
    summary: bool = False
    optional: bool = False

    @model_validator(mode="after")
    def _checked(self) -> "NoteRule":
        if (self.text is None) == (self.file is None):
            raise ValueError("a note stands in the column `text`, or in the file that the column `file` names")
        if self.details is not None and self.id is None:
            raise ValueError("details name notes by their ids: name the column `id`")
        if self.summary and self.visit is None:
            raise ValueError("a visit has one summary: name the column `visit`")
        return self

    @property
    def columns(self) -> list[str]:
        """The table's columns that it reads."""
        single = (self.text, self.file, self.id, self.subject, self.visit, self.kind, self.parent)
        times = (name for rule in (self.time, self.available) if rule for name in rule.column)
        return list(dict.fromkeys([*(name for name in single if name), *times]))
