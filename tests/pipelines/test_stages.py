"""The list of stages: each keeps the contract, a stage that is added by one line takes part, and `after` is held to."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import conversion
from pipelines.engine.local import LocalEngine
from pipelines.night import Stage
from tests.support.nights import toy_night_stage
from tests.support.nights.site import Site, make_export, site_of_images
from tests.support.nights.stage_contract import (
    DyingEngine,
    Interrupted,
    KilledError,
    StageContract,
    beam_site,
    failed_site,
    killed_site,
    shuffled_site,
)
from validation import stages
from validation.verify import verify_release
from warehouse.embeddings.environments import close_stores

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("export") / "hospital")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Site:
    site = site_of_images(tmp_path_factory.mktemp("calm"), export)
    site.night()
    close_stores()
    return site


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Site:
    return shuffled_site(tmp_path_factory.mktemp("shuffled"), export)


@pytest.fixture(scope="module")
def on_beam(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Site:
    return beam_site(tmp_path_factory.mktemp("beam"), export)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Interrupted:
    return killed_site(tmp_path_factory.mktemp("killed"), export, KEPT)


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Interrupted:
    return failed_site(tmp_path_factory.mktemp("failed"), export, KEPT)


# Those that are off in this site have nights of their own: tests/pipelines/papers/test_clinifuse.py, test_vectors.py,
# tests/whole/test_imported_vectors.py and test_note_nights.py.
OFF = ("vectors", "texts", "digests", "duplicates", "triplets", "graphs")
KEPT = [stage for stage in stages.NIGHT if stage.name not in OFF]


@pytest.fixture(params=KEPT, ids=[stage.name for stage in KEPT])
def kept_stage(request: pytest.FixtureRequest) -> Stage:
    """Each stage that the site has work for."""
    found: Stage = request.param
    return found


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_stores()


class TestEveryStage(StageContract):
    """Each stage of the list."""


def test_workers_of_a_conversion_import_stages_of_it() -> None:
    named = {stage.run.partition(":")[0] for stage in stages.NIGHT if stage.in_conversion}
    assert set(conversion.MODULES) <= named


def test_a_stage_that_reads_what_it_does_not_name_is_refused(
    calm: Site, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = replace(toy_night_stage.STAGE, after=())
    monkeypatch.setattr(stages, "NIGHT", (*stages.NIGHT, hasty))
    with pytest.raises(LookupError, match="the stage toy reads align, which it does not name"):
        site_of_images(tmp_path / "site", export).night()


def test_a_stage_is_added_by_one_line(
    calm: Site, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "NIGHT", (*stages.NIGHT, toy_night_stage.STAGE))
    site, engine = site_of_images(tmp_path / "site", export), DyingEngine("toy")
    with pytest.raises(KilledError):
        site.night(engine)
    close_stores()
    outcome = site.night(LocalEngine(1))
    step = next(step for step in outcome.steps if step["step"] == "toy")
    buckets = len(site.hashes("toy"))
    assert (step["ran"], step["resumed"]) == (buckets - 1, 1), "one task was done before the kill"
    assert site.manifest.stages["toy"] == 1
    assert set(site.hashes("toy")) == {f"toys/{bucket:04d}.json" for bucket in range(buckets)}
    assert all(finding.ok for finding in verify_release(site.layout.root))
    assert site.night().published is False
    others = {stage.name: site.hashes(stage.name) for stage in stages.NIGHT if stage.name != "toy"}
    assert others == {name: calm.hashes(name) for name in others}


def test_the_list_is_what_a_manifest_says(calm: Site) -> None:
    assert calm.manifest.stages == {stage.name: stage.version for stage in stages.NIGHT}


def test_stages_is_a_list_of_stages() -> None:
    assert all(isinstance(stage, Stage) for stage in stages.NIGHT)
