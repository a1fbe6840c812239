"""The blocks of a run's configuration for what CliniFuse trains on. Each is off where it is not given."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from extractors.cxr.views import VIEWS
from extractors.modalities import EXTRACTORS
from warehouse.configuration import LocatedPath, Settings

# How codes of these systems are nested by their letters: so many of them name a class.
NESTED: dict[str, tuple[int, ...]] = {"ATC": (1, 3, 4, 5), "ICD10CM": (3,), "ICD10PCS": (3,), "ICD9CM": (3,)}
Beginnings = tuple[str, ...]


class NodeRule(Settings):
    """Which events are nodes of a type.

    Attributes:
        codes: what their codes begin with, up to a slash.
        tables: tables whose events are all of the type, but for those that `GraphsConfig.left_out` names. They decide
            before codes do: some sources have diagnoses and procedures in one system.
    """

    codes: Beginnings = ()
    tables: tuple[str, ...] = ()


_VITAL_SIGNS = tuple(
    f"LOINC/{number}"
    for number in (
        "8867-4", "8480-6", "8462-4", "8478-0", "9279-1", "8310-5", "2708-6", "59408-5", "29463-7", "8302-2",
        "39156-5", "72514-3",
    )
)  # fmt: skip
NODES: dict[str, NodeRule] = {
    "diagnosis": NodeRule(
        codes=("ICD10CM", "ICD9CM", "ICD10", "ICD9", "ICDO3"), tables=("conditions", "condition_occurrence")
    ),
    "procedure": NodeRule(
        codes=("ICD10PCS", "ICD9PCS", "CPT4", "HCPCS", "PROCEDURE_START"),
        tables=("procedures", "procedure_occurrence"),
    ),
    "medication": NodeRule(
        codes=(
            "RXNORM", "ATC", "NDC", "CVX", "PRESCRIPTION_START", "INFUSION_START", "ED_DISPENSED", "EMAR/ADMINISTERED",
            "EMAR/ADMINISTERED BOLUS FROM IV DRIP", "EMAR/ADMINISTERED IN OTHER LOCATION", "EMAR/APPLIED",
            "EMAR/STARTED",
        ),
        tables=("medications", "drug_exposure", "immunizations"),
    ),
    "lab": NodeRule(codes=("LOINC", "MIMIC_LAB")),
    "vital": NodeRule(codes=("ED_VITAL", "CHART", "OMR", *_VITAL_SIGNS)),
}  # fmt: skip


class GraphsConfig(Settings):
    """Graphs of visits.

    Attributes:
        nodes: which events are nodes of which type; a type that is given takes the place of its default. A code is of
            the type with the longest beginning that fits.
        left_out: what codes of no node begin with, whatever their table.
        parents: the parents of metadata/codes.parquet are classes of codes.
        crosswalks: files of the site with columns `code` and `parent`, such as RxNorm to ATC; a code may have several.
        nested: by code system, so many letters of a code name a class that it is in.
        steps: classes above a code that become nodes, its parents being one step away.
        co_occurrence: which nodes of a visit occur together: all (`visit`), those with events in one span of
            `span_hours` from the visit's start (`span`), or `none`.
        span_hours: of `span`.
        days_from: `end`: a visit's days are counted from the latest end of those before it, 0 where they overlap;
            `start`: from the start of the one before it.
    """

    nodes: dict[str, NodeRule] = Field(default_factory=dict)
    left_out: Beginnings = (
        "CONDITION_END", "PROCEDURE_END", "DRUG_END", "MEDICATION_END", "INFUSION_END", "OMOP_SOURCE", "DEVICE_START",
        "SUPPLY",
    )  # fmt: skip
    parents: bool = True
    crosswalks: tuple[LocatedPath, ...] = ()
    nested: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] = Field(default_factory=lambda: dict(NESTED))
    steps: int = Field(default=5, ge=0, le=20)
    co_occurrence: Literal["visit", "span", "none"] = "visit"
    span_hours: float = Field(default=24.0, gt=0)
    days_from: Literal["end", "start"] = "end"

    @field_validator("nodes")
    @classmethod
    def _known(cls, nodes: dict[str, NodeRule]) -> dict[str, NodeRule]:
        for name in nodes:
            if name not in NODES:
                raise ValueError(f"there is no type of node {name}: write one of {', '.join(NODES)}")
        return nodes

    @property
    def rules(self) -> dict[str, NodeRule]:
        """The rule of each type, in their order."""
        return {**NODES, **self.nodes}


def _check_modalities(images: tuple[str, ...], texts: tuple[str, ...]) -> None:
    """Raises ValueError where a modality is none, or is a text among images, or the other way round."""
    for key, names, are_texts in (("images", images, False), ("texts", texts, True)):
        known = [name for name, extractor in EXTRACTORS.items() if bool(extractor.tokens) is are_texts]
        for name in names:
            if name not in known:
                raise ValueError(f"{key} names {name}: write some of {', '.join(known)}")


class DuplicatesConfig(Settings):
    """Copies among pictures and texts.

    Attributes:
        images: modalities whose pictures are compared: every one of them is decoded once more when it is new.
        texts: modalities whose texts are compared.
        scheme: whose splits count; where not given, `clinifuse` if the configuration has that scheme, else its first.
        keeps: which split keeps its copies where others have some: `train`, so that what models are evaluated on was
            never trained on, or `held_out`, which takes them out of train.
        near: texts are near copies where so much of their shingles of five tokens is the same (Jaccard).
        near_bits: pictures look alike where so many bits of their perceptual hash differ at most.
        look_alikes: pictures of two splits that look alike are `told` and stay, or are `set_aside` as exact copies are.
        least_tokens: a text of fewer is not compared.
        least_deviation: a picture whose deviation is a smaller share of the grey range has no perceptual hash.
    """

    images: tuple[str, ...] = ("cxr",)
    texts: tuple[str, ...] = ("note",)
    scheme: str | None = None
    keeps: Literal["train", "held_out"] = "train"
    near: float = Field(default=0.9, ge=0.8, le=1)
    near_bits: int = Field(default=4, ge=0, le=4)
    look_alikes: Literal["told", "set_aside"] = "told"
    least_tokens: int = Field(default=1, ge=1)
    least_deviation: float = Field(default=0.02, ge=0, lt=1)

    @model_validator(mode="after")
    def _known(self) -> "DuplicatesConfig":
        _check_modalities(self.images, self.texts)
        return self


class TripletsConfig(Settings):
    """Images, text and record of one study.

    Attributes:
        images, texts: modalities.
        scheme: as of `duplicates`.
        keep_out: schemes whose held_out subjects make no usable triplet, because models are evaluated on them; where
            not given, the scheme that labels are counted by, unless it is that of the triplets.
        views: the views of x-rays that are taken; all where not given.
        study_minutes: images of one modality that follow one another by no more are one study.
        priors: so many earlier studies of the modality stand before a study's own images, flagged; of the last
            `prior_days`.
        report_hours: by modality, how long after a study its report may be of; 24 for one that is not named.
        report_hours_before: how long before.
        kinds: kinds of notes that are reports; all but `summaries` where not given.
        summaries: kinds of notes that are a stay's summary: the text of a study that has no report, until so many
            `summary_hours` after the stay.
        least_tokens: a shorter text makes no triplet.
        link: which rules tie a study to a visit, the first that fits.
        admission_hours: a study so long before an admission belongs to it.
        admissions, emergency: what codes begin with that begin such visits.
        cutoff: until when the record counts: the `study`'s first image, or the end of its `visit`, which holds what
            came after the images.
        primary: the visit's primary diagnosis is that of the lowest number (`rank`), the one known `first`, or `none`.
        primary_system: a primary diagnosis of another system is taken as its only parent of this one, where it has one.
        sentences: whether texts that the release holds are cut into sentences.
    """

    images: tuple[str, ...] = ("ct", "wsi", "cxr")
    texts: tuple[str, ...] = ("note",)
    scheme: str | None = None
    keep_out: tuple[str, ...] | None = None
    views: tuple[str, ...] | None = None
    study_minutes: float = Field(default=60.0, ge=0)
    priors: int = Field(default=1, ge=0, le=20)
    prior_days: float = Field(default=365.0, ge=0)
    report_hours: dict[str, float] = Field(default_factory=lambda: {"wsi": 720.0})
    report_hours_before: float = Field(default=1.0, ge=0)
    kinds: tuple[str, ...] | None = None
    summaries: tuple[str, ...] = ("DS", "DISCHARGE SUMMARY", "Discharge summary")
    summary_hours: float = Field(default=72.0, ge=0)
    least_tokens: int = Field(default=10, ge=1)
    link: tuple[Literal["admission", "emergency"], ...] = ("admission", "emergency")
    admission_hours: float = Field(default=6.0, ge=0)
    admissions: Beginnings = (
        "HOSPITAL_ADMISSION", "ENCOUNTER_START/INPATIENT", "ENCOUNTER_START/HOSPITALIZATION",
        "VISIT_START/VISIT/IP", "VISIT_START/VISIT/ERIP", "VISIT_START/OMOP/9201", "VISIT_START/OMOP/262",
    )  # fmt: skip
    emergency: Beginnings = (
        "ED_ADMISSION", "ENCOUNTER_START/EMERGENCY", "VISIT_START/VISIT/ER", "VISIT_START/OMOP/9203",
    )  # fmt: skip
    cutoff: Literal["study", "visit"] = "study"
    primary: Literal["rank", "first", "none"] = "rank"
    primary_system: str | None = "ICD10CM"
    sentences: bool = True

    @model_validator(mode="after")
    def _known(self) -> "TripletsConfig":
        _check_modalities(self.images, self.texts)
        unknown = sorted(set(self.views or ()) - set(VIEWS))
        if unknown:
            raise ValueError(f"views names {unknown[0]}: write some of {', '.join(VIEWS)}")
        return self
