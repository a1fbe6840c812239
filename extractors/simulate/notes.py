"""Notes of the simulated hospital: discharge summaries whose words tell the class, and reports of x-rays.

Names and dates are three lines, as in a de-identified export. Cells hold line breaks, commas and quotes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from extractors.simulate.export import Exported, Fault, clock, signal_row, write_table
from extractors.simulate.record import DAY, HOUR, MINUTE, Record, Row
from extractors.simulate.studies import Planned, Study, faults_generator

SIGNS = (
    ("brittle nails", "restless legs", "a craving for ice"),
    ("numb feet", "a sore red tongue", "an unsteady gait"),
    ("mouth ulcers", "a diet without greens", "too much alcohol"),
    ("aching bones", "weak thighs", "months without any sun"),
)
"""What a discharge summary of a class complains of; two of three, in each of three sections."""
EFFUSIONS = ("no effusions", "small effusions", "moderate effusions", "large effusions")
"""What the report of an x-ray says of its class."""

_SERVICES = ("MEDICINE", "ONCOLOGY", "SURGERY", "NEUROLOGY")
_COURSE = (
    "Vital signs were stable throughout, and the lungs were clear.",
    'The family was told of the plan and agreed: "as soon as possible".',
    "Fluids were given for one night, then stopped.",
    "Pain was controlled with acetaminophen, as needed.",
    "An abdominal ultrasound showed no obstruction, no stones, no free fluid.",
    "Blood cultures, drawn on arrival, did not grow.",
    "Physical therapy saw the patient, who walked 50 metres without help.",
    "Home medicines were continued, apart from one that was held for low pressure.",
    "Sleep was poor on the first night and better on the second.",
    "The diet was advanced to regular, which was well tolerated.",
    "No events on telemetry.",
    "Potassium was repleted twice.",
)
COLUMNS = {
    "note_id": pl.String,
    "patient_id": pl.String,
    "encounter_id": pl.String,
    "note_type": pl.String,
    "charted_time": pl.String,
    "stored_time": pl.String,
    "text": pl.String,
}
LONG_SENTENCES = 200
_REPORTS = 5_000  # what the generators of reports begin with, so that no other has them


def summary_text(rng: np.random.Generator, image_class: int, sentences: int = 0) -> str:
    """A discharge summary of a class; `sentences` of its course, some six where not given."""
    signs = [SIGNS[image_class][int(k)] for k in rng.permutation(3)[:2]]
    service = _SERVICES[int(rng.integers(len(_SERVICES)))]
    drawn = (
        rng.integers(len(_COURSE), size=sentences) if sentences else rng.permutation(len(_COURSE))[: rng.integers(4, 9)]
    )
    course = [_COURSE[int(k)] for k in drawn]
    pulse, oxygen = int(rng.integers(58, 104)), int(rng.integers(93, 100))
    return "\n".join(
        [
            "Name:  ___                     Unit No:   ___",
            "Admission Date:  ___              Discharge Date:   ___",
            f"Service: {service}",
            "",
            "Chief Complaint:",
            f"{signs[0]}, {signs[1]}",
            "",
            "History of Present Illness:",
            f"The patient tells of {signs[0]} and {signs[1]} for {int(rng.integers(2, 12))} weeks.",
            "",
            "Physical Exam:",
            f"Pulse {pulse}, saturation {oxygen}% on room air. General: in no distress.",
            "",
            "Brief Hospital Course:",
            *course,
            "",
            "Discharge Condition:",
            f"Mental status: clear. Still {signs[1]} and {signs[0]}. Followup with Dr. ___.",
        ]
    )


def report_text(rng: np.random.Generator, image_class: int) -> str:
    """The report of a chest x-ray of a class."""
    effusion = EFFUSIONS[image_class]
    return "\n".join(
        [
            "EXAMINATION:  CHEST (PA OR AP)",
            f"INDICATION:  ___ year old with cough for {int(rng.integers(2, 30))} days",
            "COMPARISON:  ___",
            "FINDINGS:",
            f"The heart takes {rng.uniform(0.42, 0.52):.3f} of the chest. There are {effusion} on both sides.",
            f"The fluid stands at rib {9 - 2 * image_class}." if image_class else "The angles are sharp.",
            f"IMPRESSION:  {effusion}, heart size as measured ({rng.uniform(11, 15):.2f} cm).",
        ]
    )


def export_notes(root: Path, seed: int, planned: Mapping[str, Sequence[Planned]], done: Callable[[], None]) -> Exported:
    """Writes `notes/`: the table of discharge summaries, and that of the reports of the x-rays that are exported."""
    summaries, reports, signal = [], [], []
    for patient, study in planned["note"]:
        text = summary_text(study.generator(seed, patient), study.image.image_class)
        row = _row(patient, study.encounter(patient), study.number, study.charted, study.image.time, text)
        summaries.append(row)
        study.image.image_id = str(row[0])
        signal.append(signal_row(patient, study.image))
        done()
    for patient, film in planned.get("cxr", ()):
        rng = np.random.default_rng(np.random.SeedSequence([seed, patient.index, _REPORTS + film.number]))
        written = film.image.finding_result_time + int(rng.integers(60, 240)) * MINUTE
        text = report_text(rng, film.image.image_class)
        reports.append(_row(patient, film.encounter(patient), film.number, film.image.time, written, text, "RR"))
    faults, faulty = _faulty(seed, *planned["note"][0]) if planned["note"] else ([], [])
    for name, rows in (("discharge", summaries + faulty), ("radiology", reports)):
        write_table(root / "notes" / f"{name}.csv", pl.DataFrame(rows, COLUMNS, orient="row"))
    return Exported(signal, faults)


def _row(
    patient: Record, encounter: str | None, number: int, charted: int, stored: int | None, text: str, kind: str = "DS"
) -> Row:
    known = None if stored is None else clock(stored)
    note = f"{patient.index:06d}-{kind}-{number}"
    return note, patient.patient_id, encounter, kind, clock(charted), known, text


def _faulty(seed: int, patient: Record, study: Study) -> tuple[list[Fault], list[Row]]:
    """Odd and faulty summaries of one subject, in the nights before its first note."""
    rng = faults_generator(seed, "note")
    rows: list[Row] = []
    faults: list[Fault] = []

    def add(name: str, what: str, verdict: str, text: str, *, stored_hours: int | None = 1, **geometry: Any) -> None:
        charted = study.night_before(len(rows) + 1)
        if stored_hours is None:
            charted -= charted % DAY  # a date alone
        stored = None if stored_hours is None else charted + stored_hours * HOUR
        rows.append(_row(patient, None, 90 + len(rows), charted, stored, text))
        faults.append(Fault(name, what, 1, "", (str(rows[-1][0]),), "verdict", verdict, geometry))

    def summary(sentences: int = 0) -> str:
        return summary_text(rng, 0, sentences)

    add(
        "note_stored_before_charted",
        "stored an hour before it is charted",
        "ok",
        summary(),
        stored_hours=-1,
        stored_early=True,
    )
    add("note_without_stored_time", "nothing says when it was stored", "ok", summary(), stored_hours=None)
    add("note_of_marks", "only the lines that stand for names", "refused_empty", "___  ___\n___")
    add("note_empty", "no text", "refused_empty", "")
    copied = summary()
    add("note_copied_forward", "every word of a note of the night before", "ok", copied, exact_copies=1)
    add("note_copied_from", "a note whose copy is filed the night after", "ok", copied, exact_copies=1)
    add("note_long", "longer than its windows", "ok", summary(LONG_SENTENCES))
    return faults, rows
