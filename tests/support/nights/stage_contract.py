"""The contract of every stage of the list; a test class that inherits it runs with each stage of the list."""

import importlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.engine.beam import BeamEngine
from pipelines.engine.local import LocalEngine
from pipelines.engine.task import Task
from pipelines.night import Stage
from tests.support.nights.site import Site, shuffled_tables, site_of_images
from validation import stages
from warehouse.embeddings.environments import close_stores
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout

PATIENT = "MRN-4711 Erika Mustermann"


class KilledError(BaseException):
    """Stands for the death of the process."""


class DyingEngine(LocalEngine):
    """Runs until the first task of a stage is done, and then dies."""

    def __init__(self, stage: str) -> None:
        super().__init__(1)
        self.stage = stage
        self.died = False

    def map(self, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
        """Runs the tasks; of its stage only the first one."""
        if tasks and tasks[0].stage == self.stage:
            super().map(tasks[:1], done)
            self.died = True
            raise KilledError
        super().map(tasks, done)


@dataclass
class Interrupted:
    """A site of which each run ended in another stage, in their order, and the next one went on from there.

    Attributes:
        stages: those in which a run ended, with all that it told then.
    """

    site: Site
    stages: dict[str, list[str]]


class StageContract:
    """The contract. Fixtures: `kept_stage`; the sites `calm`, `shuffled` and `on_beam`; `killed` and `failed`."""

    def test_it_is_declared_whole(self, kept_stage: Stage) -> None:
        place = stages.NIGHT.index(kept_stage)
        before = [other.name for other in stages.NIGHT[:place]]
        assert set(kept_stage.after) <= set(before), "a stage reads only what ran before it"
        assert kept_stage.name not in before
        module, name = kept_stage.run.split(":")
        assert callable(getattr(importlib.import_module(module), name))
        if kept_stage.prepares is not None:
            assert kept_stage.prepares in [other.name for other in stages.NIGHT[place:]]

    def test_shuffled_input_gives_the_same_bytes(self, kept_stage: Stage, calm: Site, shuffled: Site) -> None:
        # Rows without events are listed by their record number, and a shuffle changes that number.
        numbered = str(ReleaseLayout(Path()).quarantine)
        expected, made = calm.hashes(kept_stage.name), shuffled.hashes(kept_stage.name)
        assert made | {numbered: None} == expected | {numbered: None}

    def test_both_engines_give_the_same_bytes(self, kept_stage: Stage, calm: Site, on_beam: Site) -> None:
        assert on_beam.hashes(kept_stage.name) == calm.hashes(kept_stage.name)

    def test_a_kill_in_its_midst_is_made_good(self, kept_stage: Stage, calm: Site, killed: Interrupted) -> None:
        assert kept_stage.name in killed.stages
        assert killed.site.hashes(kept_stage.name) == calm.hashes(kept_stage.name)
        assert killed.site.manifest.content_hash == calm.manifest.content_hash

    def test_no_value_of_a_patient_is_told(self, kept_stage: Stage, failed: Interrupted) -> None:
        messages = failed.stages[kept_stage.name]
        assert messages and not any(word in message for word in PATIENT.split() for message in messages)


def killed_site(folder: Path, export: Path, stages: Sequence[Stage]) -> Interrupted:
    """A site that was killed after the first task of each stage, and then had a whole night."""
    killed = Interrupted(site_of_images(folder / "site", export), {})
    for stage in stages:
        engine = DyingEngine(stage.name)
        with suppress(KilledError):
            killed.site.night(engine)
        close_stores()
        if engine.died:
            killed.stages[stage.name] = []
    killed.site.night()
    close_stores()
    return killed


def failed_site(folder: Path, export: Path, stages: Sequence[Stage]) -> Interrupted:
    """A site on which each stage failed with a patient's name, and all that it said of it."""
    failed = Interrupted(site_of_images(folder / "site", export), {})

    def fails(*_: object) -> None:
        raise ValueError(PATIENT)

    for stage in stages:
        module, name = stage.run.split(":")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(TimeloomError) as caught:
            patch.setattr(importlib.import_module(module), name, fails)
            failed.site.night()
        close_stores()
        layout = failed.site.layout
        failed.stages[stage.name] = [
            str(caught.value),
            json.dumps(getattr(caught.value, "__notes__", [])),
            *(path.read_text(errors="ignore") for path in layout.logs.glob("*.log")),
            *(path.read_text(errors="ignore") for path in layout.work.rglob("*.error")),
        ]
    return failed


def shuffled_site(folder: Path, export: Path) -> Site:
    """A site after one night over the same rows in the opposite order."""
    site = site_of_images(folder / "site", export, shuffled_tables(export, folder / "tables"))
    site.night()
    return site


def beam_site(folder: Path, export: Path) -> Site:
    """A site after one night on Beam."""
    site = site_of_images(folder / "site", export)
    site.night(BeamEngine())
    return site
