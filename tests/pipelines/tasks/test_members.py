"""Codes of a bucket by list: what a process worked out of a release's codes serves its buckets, until they change."""

from pathlib import Path

import polars as pl
import pytest

from pipelines.tasks import members
from pipelines.tasks.members import LabelCodes
from pipelines.tasks.settings import LabelsConfig
from warehouse.layout import ReleaseLayout

RELEASE = {"ICD10CM/N179": ["ICD10CM/N17"], "ICD10CM/N180": [], "SITE/7": ["ICD10CM/N179"], "RXNORM/2555": []}
BUCKETS = (["ICD10CM/N179", "RXNORM/2555"], ["SITE/7"], ["ICD10CM/N180"])
LISTS = ["aki", "kidney_failure", "antineoplastic"]


@pytest.fixture
def tree(tmp_path: Path) -> ReleaseLayout:
    made = ReleaseLayout(tmp_path)
    put(made, RELEASE)
    for bucket, codes in enumerate(BUCKETS):
        path = made.codes_of(bucket)
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame({"code": codes}).write_parquet(path, use_pyarrow=True)
    return made


def put(tree: ReleaseLayout, codes: dict[str, list[str]]) -> None:
    tree.codes.parent.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame(
        {"code": list(codes), "parent_codes": list(codes.values())},
        schema_overrides={"parent_codes": pl.List(pl.String)},
    )
    frame.write_parquet(tree.codes, use_pyarrow=True)


def test_what_is_worked_out_once_is_what_each_bucket_works_out(tree: ReleaseLayout) -> None:
    given = LabelCodes.of(tree, LabelsConfig())
    shared = LabelCodes.of_params(given.params, tree)
    found = 0
    for bucket in range(len(BUCKETS)):
        fresh = LabelCodes.of(tree, LabelsConfig()).members_of(bucket, LISTS)
        assert shared.members_of(bucket, LISTS).equals(fresh)
        found += len(fresh)
    assert found >= 2


def test_a_process_works_it_out_once_and_anew_for_other_codes(
    tree: ReleaseLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = LabelCodes.of(tree, LabelsConfig())
    asked: list[int] = []
    resolve = members.resolve

    def counted(*arguments: object) -> pl.DataFrame:
        asked.append(1)
        return resolve(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(members, "resolve", counted)
    first = [LabelCodes.of_params(given.params, tree).members_of(bucket, LISTS[:1]) for bucket in range(3)]
    assert len(asked) == 1
    put(tree, RELEASE | {"SITE/7": []})
    again = [LabelCodes.of_params(given.params, tree).members_of(bucket, LISTS[:1]) for bucket in range(3)]
    assert len(asked) == 2
    assert first[0].equals(again[0])
    assert not first[1].equals(again[1]), "the code has no parent any more"
