"""What a modality's package gives: its settings, how its files become items, and how its items become units."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractors.crosswalk import CrosswalkConfig, Match
from extractors.items import FoundItem
from extractors.reading import SubjectReading
from warehouse.configuration import LocatedPath, Settings

if TYPE_CHECKING:
    import polars as pl

Advance = Callable[[int, int], None]
KEPT = "kept"  # of an item's geometry: the file that its index left for its reader


class ModalitySettings(SubjectReading, Settings):
    """Where a modality's files lie, and what ties them to subjects. A modality that has more keys extends this class.

    `subject_pattern` and `subject_normalise` are of the ids that stand in its files.

    Every key but the files' places is part of what an index is known by: a new one indexes its own modality anew, and
    no other.

    Attributes:
        issuers: whose ids the tables have, where files name who gave an id (IssuerOfPatientID). Patients of others are
            others, `504^^^CLINIC`. Where none is named, only an id that several issuers gave is told apart.
    """

    path: LocatedPath
    crosswalk: CrosswalkConfig | None = None
    issuers: tuple[str, ...] = ()

    @property
    def tables(self) -> Mapping[str, Path]:
        """Files besides the images that say something of them, by their keys: what is in them is part of an index."""
        return {}

    @property
    def cut(self) -> str:
        """Of items that are cut into units in several ways, the one by which they are compared; empty where they are
        not."""
        return ""

    @property
    def keeps_texts(self) -> bool:
        """Whether items have texts that become part of a release."""
        return False


@dataclass(frozen=True)
class Finding:
    """What was found in a file, as far as that can be told without other files.

    Attributes:
        value: JSON.
        series: findings of one series are judged together.
        study: series of one study are judged together; empty where there is none.
    """

    value: dict[str, Any]
    series: str
    study: str = ""


@dataclass(frozen=True)
class Examined:
    """A file's findings, and the fingerprints of what in it is none of the modality."""

    findings: list[Finding]
    foreign: list[str]


@dataclass(frozen=True)
class ByFile:
    """How items of many files are found: each file once, then what belongs together. Functions are `module:name`.

    Attributes:
        examine: a function of settings and an `extractors.trees.Entry` below their path, which gives an `Examined`.
        beside: a function of the findings of a folder, which gives them with what each of them owes to the others.
        items: a function of settings and findings, whole series and studies of them in whatever order, which gives
            their items.
        judged_later: keys of the settings that `items` alone minds.
        reads_tables: `examine` reads the settings' tables.
    """

    examine: str
    beside: str
    items: str
    judged_later: tuple[str, ...] = ()
    reads_tables: bool = False


@dataclass(frozen=True)
class Extractor:
    """A modality's way from files to units. Functions are named `module:name`, and imported when they are needed.

    Attributes:
        settings: the class of its settings.
        index: a function of settings, the crosswalk (columns of `read_crosswalk`, or None), progress (done and total
            files; 0 is unknown) and worker processes, which gives every item with its verdict. Without a crosswalk it
            judges the files alone, also where runs need one.
        read_units: a function of a UnitRequest and a number of units, which gives an item's units in batches. Where an
            item's geometry has several ways under CUTS, it gives the units of the one that is named under CUT.
        units_a_batch: units that `read_units` is asked for at a time.
        too_many_failed: the verdict of an item too few of whose units can be read.
        needs_crosswalk: its files name no subject of their own.
        check: a function of settings that raises a TimeloomError where they cannot be right, before any work.
        digest: a function of a UnitRequest that tells an item's whole content, or gives an empty text where there is
            too little of it to tell; none where the `content` of its items tells it.
        files_too: its path may be a single file, with all of its items.
        takes_known: `index` is given, besides, the items that an earlier night found with the same settings: one whose
            files stand as they did need not be judged again.
        text: a function of a UnitRequest that gives an item's text, where its settings keep texts.
        tokens: a function of a UnitRequest that gives all of a text's tokens (n,); none where items are no texts.
        keeps: `index` is given, besides, the path of a folder below the private one, in which it may leave what its
            reader needs, and where geometry says under KEPT which file; None where nothing will be read.
        by_file: how its items are found file by file, so that a night reads only the files that changed. Without it
            `index` is asked about the whole tree whenever anything in it changed.
        reads: what files it reads, in words.
        foreign: the verdict of the one item for all files that are none of the modality.
        matches: what a crosswalk may name its items by.
        noted: keys of an item's geometry that are there where something of it is odd; `timeloom index` counts them.
        private_geometry: keys of an item's geometry that its reader alone needs; they stay in the private folder.
        keyed_geometry: keys whose values name a group of items, and are hashed by the site's key.
    """

    settings: type[ModalitySettings]
    index: str
    read_units: str
    units_a_batch: int
    too_many_failed: str = "failed_unreadable"
    needs_crosswalk: bool = False
    check: str = ""
    digest: str = ""
    files_too: bool = False
    takes_known: bool = False
    text: str = ""
    tokens: str = ""
    keeps: bool = False
    by_file: ByFile | None = None
    reads: str = ""
    foreign: str = ""
    matches: tuple[Match, ...] = ("patient_id",)
    noted: tuple[str, ...] = ()
    private_geometry: frozenset[str] = frozenset()
    keyed_geometry: frozenset[str] = frozenset()

    def index_items(
        self,
        settings: ModalitySettings,
        links: "pl.DataFrame | None",
        progress: Advance | None = None,
        workers: int | None = None,
        known: Sequence[FoundItem] = (),
        kept: Path | None = None,
    ) -> list[FoundItem]:
        """Every item under the settings' path, as `index` finds it, beside items that are known where it takes them.

        Args:
            kept: the folder for what a reader needs, where one `keeps`.
        """
        more: tuple[Any, ...] = (known,) if self.takes_known else ()
        if self.keeps:
            more += (kept,)
        found: list[FoundItem] = imported(self.index)(settings, links, progress, workers, *more)
        return found


def imported(reference: str) -> Callable[..., Any]:
    """The function that `module:name` says.

    Raises:
        ImportError, AttributeError: it, or a library that it needs, is not installed.
    """
    module, name = reference.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
