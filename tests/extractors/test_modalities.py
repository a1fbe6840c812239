"""The list of modalities: its four files agree, every modality passes the contract, the names stand nowhere else."""

import re
from pathlib import Path

import pytest

from embedders.inputs.registry import SPECS
from extractors.items import VERDICTS
from extractors.modalities import EXTRACTORS, extractor_of
from tests.support.modality_contract import check_damage, check_same_bits
from warehouse.errors import TimeloomError
from warehouse.modalities import INDEXED, MODALITIES
from warehouse.tokens import IMAGE_TOKENS, RESERVED

ROOT = Path(__file__).parents[2]
ROOMS = ("warehouse", "extractors", "embedders", "pipelines", "validation", "flows")
# The report's page writes notes of tables.
MAY_NAME = re.compile(
    r"warehouse/modalities\.py|extractors/modalities\.py|extractors/simulate/.*|embedders/inputs/registry\.py"
    r"|embedders/encoders/registry\.py|validation/report/page\.py"
    r"|pipelines/clinifuse/settings\.py"  # what the paper pairs, as defaults
    r"|(extractors|embedders/inputs)/({names})(/.*|\.py)".replace("{names}", "|".join(INDEXED))
)


def test_numbers_and_reserved_tokens_never_change() -> None:
    assert {name: modality.number for name, modality in MODALITIES.items()} == {
        "ct": 0, "wsi": 1, "ecg": 2, "cxr": 3, "note": 4,
    }  # fmt: skip
    assert IMAGE_TOKENS == {"ct": 4, "wsi": 5, "ecg": 6, "cxr": 7, "note": 8}
    assert [token for token, _ in RESERVED][4:] == ["[CT]", "[WSI]", "[ECG]", "[CXR]", "[NOTE]"]
    assert [modality.event for modality in MODALITIES.values()][:2] == ["IMAGE/CT", "IMAGE/WSI"]


def test_the_lists_agree() -> None:
    assert list(EXTRACTORS) == list(SPECS) == list(INDEXED)
    assert len({spec.kind for spec in SPECS.values()}) == len(SPECS)
    assert {extractor.too_many_failed for extractor in EXTRACTORS.values()} <= VERDICTS.keys()


def test_an_unknown_modality_is_one_line() -> None:
    with pytest.raises(TimeloomError, match="there is no modality mri") as error:
        extractor_of("mri")
    assert str(error.value.remedy) == f"known are {', '.join(EXTRACTORS)}"


def test_a_modality_is_named_in_its_own_files_and_in_the_lists_only() -> None:
    names = re.compile(rf'"({"|".join(INDEXED)})"')
    found = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if names.search(path.read_text(encoding="utf-8"))
    }
    assert {path for path in found if not MAY_NAME.fullmatch(path)} == set()


@pytest.mark.whole
@pytest.mark.parametrize("modality", INDEXED)
def test_the_same_bits_for_any_number_of_decoders(modality: str, tmp_path: Path) -> None:
    check_same_bits(modality, tmp_path)


@pytest.mark.parametrize("modality", INDEXED)
def test_a_damaged_file_becomes_a_verdict(modality: str, tmp_path: Path) -> None:
    check_damage(modality, tmp_path)
