"""Histories and prompts against plain loops: a timeline made of what was known, cut by hand."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cohort import IDS, PROFILE, TASK, Fact, Label, cohort, draw, known_by, timeline, us, vector
from tests.warehouse.readers.tasks.test_features import in_order
from warehouse import NO_TIME, ProbeBatch, ProbeDataset, Prompt, Release, TimeloomError
from warehouse.embeddings.store import close_stores
from warehouse.tokens import TIMELINE_END

Row = list[tuple[str, int | None, str | None]]
ADMISSION = Prompt(
    start=("HOSPITAL_ADMISSION",), following=("INSURANCE",), stop=("HOSPITAL_DISCHARGE", "MEDS_DEATH"),
    positive=("MEDS_DEATH",), horizon_days=30,
)  # fmt: skip
UNKNOWN = ("DEMO/ETHNICITY", "DEMO/SEX")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_stores()


def read(dataset: ProbeDataset, batch_size: int = 5) -> list[tuple[int, int, bool, list[str], list[int], list[str]]]:
    """Of each row: subject, prediction time, label, tokens, times, keys of image tokens, with padding checked."""
    rows = []
    for batch in dataset.batches(batch_size):
        keys = {
            (int(row), int(at)): key
            for modality, places in batch.item_positions.items()
            for (row, at), key in zip(places.tolist(), batch.item_keys[modality], strict=True)
        }
        for row in range(len(batch)):
            length = int(batch.lengths[row])
            assert not batch.input_ids[row, length:].any() and batch.real[row].sum() == length
            assert (batch.time_us[row, length:] == NO_TIME).all()
            tokens = [dataset.names[number] for number in batch.input_ids[row, :length].tolist()]
            items = [key for (its, _), key in sorted(keys.items()) if its == row]
            rows.append(
                (
                    int(batch.subject_ids[row]), int(batch.prediction_time_us[row]), bool(batch.outcome[row]),
                    tokens, batch.time_us[row, :length].tolist(), items,
                )
            )  # fmt: skip
    return rows


def cut(whole: Row, length: int, *, front: bool) -> Row:
    """The last tokens of a timeline; with its front, where that leaves room for one more."""
    ahead = sum(minute is None for _, minute, _ in whole) if front else 0
    if not 0 < ahead < length:
        return whole[-length:]
    return whole[:ahead] + whole[ahead:][-(length - ahead) :]


def expected(label: Label, row: Row) -> tuple[int, int, bool, list[str], list[int], list[str]]:
    times = [NO_TIME if minute is None else us(minute) for _, minute, _ in row]
    keys = [key for _, _, key in row if key]
    return label.subject, us(label.time), label.outcome, [token for token, _, _ in row], times, keys


def prompted(facts: Sequence[Fact], label: Label, unknown: Sequence[str]) -> Row:
    """A timeline up to its last admission at the prediction time, and the insurances of that moment behind it."""
    had = [
        fact for fact in known_by(facts, label.subject, label.time) if not (fact.modality and fact.known == label.time)
    ]
    whole = timeline(had, unknown)
    starts = [
        place for place, (token, minute, _) in enumerate(whole)
        if minute == label.time and token.startswith("HOSPITAL_ADMISSION/")
    ]  # fmt: skip
    if not starts:
        return []
    end = starts[-1] + 1
    for place in range(end, len(whole)):
        if whole[place][0].startswith("INSURANCE/"):
            end = place + 1
    return whole[:end]


@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 1000), length=st.integers(1, 14), front=st.booleans(), unknown=st.sampled_from([(), UNKNOWN])
)
def test_rows_are_the_timelines_of_what_was_known(
    tmp_path_factory: pytest.TempPathFactory, seed: int, length: int, front: bool, unknown: tuple[str, ...]
) -> None:
    facts, labels = draw(seed, subjects=10)
    # Labels at admissions too, for prompts to end at.
    labels += [
        Label(fact.subject, fact.known, True)
        for fact in facts
        if fact.code.startswith("HOSPITAL_ADMISSION") and fact.known is not None
    ]
    release = cohort(tmp_path_factory.mktemp("probes") / "root", facts, labels, subjects=10, unknown=unknown)
    ordered = in_order(release, labels)
    histories = release.histories(PROFILE, TASK, context=2 * length, front=front)
    whole = [
        cut(timeline(known_by(facts, label.subject, label.time), unknown), length, front=front) for label in ordered
    ]
    assert read(histories) == [expected(*pair) for pair in zip(ordered, whole, strict=True)]
    prompts = release.prompts(PROFILE, TASK, length=length, prompt=ADMISSION, front=front)
    cut_rows = [cut(prompted(facts, label, unknown), length, front=front) for label in ordered]
    assert read(prompts, 3) == [expected(*pair) for pair in zip(ordered, cut_rows, strict=True)]
    # A plan's places are those of the tokens in the subject's timeline, where nothing is hidden.
    for label, row, place in zip(ordered, whole, histories.plan().iter_rows(named=True), strict=True):
        full = timeline([fact for fact in facts if fact.subject == label.subject], unknown)
        assert place["subject_id"] == label.subject and place["end"] - place["first"] + place["front"] >= len(row)
        assert all(minute is None or minute <= label.time for _, minute, _ in full[place["first"] : place["end"]])
    close_stores()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    facts = [
        Fact(1, "DEMO/SEX/F", None, None),
        Fact(1, "LOINC/2160-0", 1, 1),
        Fact(1, "IMAGE/CT", 2, 3, "ct", "ct-1-1"),
        Fact(1, "HOSPITAL_ADMISSION/EMERGENCY", 5, 5),
        Fact(1, "INSURANCE/PRIVATE", 5, 5),
        Fact(1, "IMAGE/CT", 5, 5, "ct", "ct-1-2"),
        Fact(1, "LOINC/2160-0", 5, 5),
        Fact(1, "MEDS_DEATH", 9, 9),
        Fact(2, "DEMO/SEX/M", None, None),
        Fact(2, "RXNORM/2555", 4, 4),
    ]
    labels = [Label(1, 2, False), Label(1, 5, True), Label(1, 9, True), Label(2, 4, False), Label(3, 4, True)]
    return cohort(tmp_path_factory.mktemp("release") / "root", facts, labels)


def row_of(dataset: ProbeDataset, subject: int, minute: int) -> tuple[ProbeBatch, int]:
    for batch in dataset.batches(8):
        for row in range(len(batch)):
            if int(batch.subject_ids[row]) == subject and int(batch.prediction_time_us[row]) == us(minute):
                return batch, row
    raise LookupError


def named(dataset: ProbeDataset, batch: ProbeBatch, row: int) -> list[str]:
    return [dataset.names[number] for number in batch.input_ids[row, : int(batch.lengths[row])].tolist()]


def test_an_image_is_seen_when_it_is_available_and_a_prompt_sees_strictly_earlier_ones(release: Release) -> None:
    histories = release.histories(PROFILE, TASK, context=64)
    batch, row = row_of(histories, 1, 2)
    assert named(histories, batch, row) == ["[BOS]", "DEMO/SEX/F", "LOINC/2160-0"]
    batch, row = row_of(histories, 1, 5)
    assert named(histories, batch, row)[-2:] == ["LOINC/2160-0", "[CT]"]
    of_row = batch.item_segment["ct"] == row
    found = [key for key, wanted in zip(batch.item_keys["ct"], of_row.tolist(), strict=True) if wanted]
    assert found == ["ct-1-1", "ct-1-2"]
    np.testing.assert_array_equal(batch.item_vectors["ct"][of_row][1].numpy(), vector("ct", "ct-1-2"))
    prompts = release.prompts(PROFILE, TASK, length=64, prompt=ADMISSION)
    batch, row = row_of(prompts, 1, 5)
    tokens = ["[BOS]", "DEMO/SEX/F", "LOINC/2160-0", "[CT]", "HOSPITAL_ADMISSION/EMERGENCY", "INSURANCE/PRIVATE"]
    assert named(prompts, batch, row) == tokens and batch.start[row] == 4
    assert batch.item_keys["ct"] == ["ct-1-1"]
    # By their times, tokens or not: the same rule, and at most so many.
    retrieved = release.prompts(PROFILE, TASK, length=64, prompt=ADMISSION, items_per_row=4)
    batch, row = row_of(retrieved, 1, 5)
    assert [key for key, its in zip(batch.item_keys["ct"], batch.item_segment["ct"], strict=True) if its == row] == [
        "ct-1-1"
    ]
    seen = release.histories(PROFILE, TASK, context=64, items_per_row=1)
    batch, row = row_of(seen, 1, 5)
    assert [key for key, its in zip(batch.item_keys["ct"], batch.item_segment["ct"], strict=True) if its == row] == [
        "ct-1-2"
    ]
    assert batch.items_dropped["ct"] >= 1


def test_a_prompt_takes_so_many_following_tokens_of_its_own_moment(release: Release) -> None:
    for following, last in ((0, "HOSPITAL_ADMISSION/EMERGENCY"), (1, "INSURANCE/PRIVATE"), (9, "LOINC/2160-0")):
        prompt = Prompt(start=("HOSPITAL_ADMISSION",), following=following)
        dataset = release.prompts(PROFILE, TASK, length=64, prompt=prompt)
        batch, row = row_of(dataset, 1, 5)
        assert named(dataset, batch, row)[-1] == last
        # Where there is no admission at the prediction time there is no prompt.
        batch, row = row_of(dataset, 1, 9)
        assert batch.lengths[row] == 0 and batch.start[row] == -1
    everything = release.prompts(PROFILE, TASK, length=64, prompt=Prompt())
    batch, row = row_of(everything, 1, 5)
    assert named(everything, batch, row)[-1] == "LOINC/2160-0"


def test_an_echo_holds_the_history_twice_and_says_where_the_second_copy_is(release: Release) -> None:
    plain = release.histories(PROFILE, TASK, context=6)
    echo = release.histories(PROFILE, TASK, context=6, echo=True)
    once, twice = next(plain.batches(8)), next(echo.batches(8))
    assert (twice.lengths == 2 * once.lengths).all() and twice.lengths.max() == 6
    assert (twice.second_start == once.lengths).all() and (once.second_start == -1).all()
    for row in range(len(once)):
        length = int(once.lengths[row])
        assert torch.equal(twice.input_ids[row, : 2 * length], once.input_ids[row, :length].repeat(2))
        assert torch.equal(twice.input_ids[row][twice.second_copy[row]], once.input_ids[row, :length])
    assert torch.equal(twice.position_ids[0, :6], torch.arange(6)) and not once.second_copy.any()
    # An image stands in both copies, each with its vector.
    assert twice.item_keys["ct"] == [key for key in once.item_keys["ct"] for _ in (1, 2)] or sorted(
        twice.item_keys["ct"]
    ) == sorted(once.item_keys["ct"] * 2)
    at = twice.item_positions["ct"]
    assert (twice.token_type[at[:, 0], at[:, 1]] == 4).all() and len(at) == 2 * len(once.item_keys["ct"])
    assert (twice.last == twice.lengths.clamp(min=1) - 1).all()


def test_the_end_of_a_timeline_is_in_no_row(release: Release) -> None:
    histories = release.histories(PROFILE, TASK, context=64)
    batch, row = row_of(histories, 1, 9)
    assert named(histories, batch, row)[-1] == "MEDS_DEATH"
    assert all(IDS[TIMELINE_END] not in batch.input_ids for batch in histories.batches(2))


def test_a_fact_that_was_known_later_is_in_no_row(tmp_path: Path) -> None:
    facts = [
        Fact(1, "DEMO/ETHNICITY/B", 7, 7), Fact(1, "DEMO/ETHNICITY/UNKNOWN", 3, 3), Fact(1, "DEMO/SEX/F", None, None),
        Fact(1, "LOINC/2160-0", 1, 1), Fact(1, "MEDS_BIRTH", -9, -9),
    ]  # fmt: skip
    release = cohort(tmp_path / "root", facts, [Label(1, minute, True) for minute in (0, 2, 4, 8)])
    dataset = release.histories(PROFILE, TASK, context=64)
    known = {minute: named(dataset, *row_of(dataset, 1, minute)) for minute in (0, 2, 4, 8)}
    # Before the first event nobody knows the age at it.
    assert known[0] == ["[BOS]", "DEMO/SEX/F"]
    assert known[2] == ["[BOS]", "DEMO/AGE/60-69", "DEMO/SEX/F", "LOINC/2160-0"]
    assert known[4] == ["[BOS]", "DEMO/AGE/60-69", "DEMO/ETHNICITY/UNKNOWN", "DEMO/SEX/F", "LOINC/2160-0"]
    assert known[8] == ["[BOS]", "DEMO/AGE/60-69", "DEMO/ETHNICITY/B", "DEMO/SEX/F", "LOINC/2160-0"]


def test_every_label_is_given_once_over_ranks_workers_and_batch_sizes(release: Release) -> None:
    whole = read(release.histories(PROFILE, TASK, context=64), 2)
    assert len(whole) == len(release.histories(PROFILE, TASK, context=64)) == 5
    # A subject without a token has an empty row.
    assert [row[3] for row in whole if row[0] == 3] == [[]]
    shared = [
        row for rank in range(3) for row in read(release.histories(PROFILE, TASK, context=64, rank=rank, world_size=3))
    ]
    assert sorted(shared) == sorted(whole)
    numbers = [int(batch.pack_ids[0]) for batch in release.histories(PROFILE, TASK, context=64)]
    assert numbers == list(range(5))
    moved = next(release.histories(PROFILE, TASK, context=64).batches(5)).to("cpu")
    assert isinstance(moved, ProbeBatch) and torch.isfinite(moved.attention_bias()).all()


def test_stops_and_horizon_are_the_prompts(release: Release) -> None:
    prompts = release.prompts(PROFILE, TASK, length=8, prompt=ADMISSION)
    stop = {IDS["HOSPITAL_DISCHARGE/HOME"], IDS["MEDS_DEATH"], IDS[TIMELINE_END]}
    assert set(prompts.stop_ids.tolist()) == stop and prompts.positive_ids.tolist() == [IDS["MEDS_DEATH"]]
    assert prompts.horizon_us == 30 * 86_400_000_000
    with pytest.raises(TimeloomError, match="no prompts"):
        _ = release.histories(PROFILE, TASK, context=8).stop_ids
    with pytest.raises(TimeloomError, match="no prompt of this task"):
        release.prompts(PROFILE, TASK, length=8)
    with pytest.raises(TimeloomError, match="no token of ICU_ADMISSION"):
        release.prompts(PROFILE, TASK, length=8, prompt=Prompt(start=("ICU_ADMISSION",)))


def test_tokens_that_stand_by_time_are_no_history_of_what_was_known(tmp_path: Path) -> None:
    release = cohort(tmp_path / "root", [Fact(1, "LOINC/2160-0", 1, 1)], [Label(1, 2, True)], order="time")
    with pytest.raises(TimeloomError, match="stand by time"):
        release.histories(PROFILE, TASK, context=8)
    assert len(release.histories(PROFILE, TASK, context=8, clock="time")) == 1
