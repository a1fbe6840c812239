"""Golden vectors stop a worker that would fill a store with wrong vectors; devices are chosen without surprise."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from embedders.encoders import device
from embedders.encoders.build import Encoder, EncoderConfig, build_encoder, check_golden, encoder_spec, get_encoder
from embedders.encoders.golden import RECORD
from embedders.encoders.spec import EncoderSpec
from embedders.inputs.common import PHANTOMS
from embedders.inputs.registry import SPECS
from warehouse.errors import TimeloomError

pytestmark = pytest.mark.whole  # every test builds encoders and embeds with them

WIDTH = 64
CPU = torch.device("cpu")


def config(**changes: Any) -> EncoderConfig:
    return EncoderConfig.model_validate({"name": "random-dinov2", "width": WIDTH, "device": "cpu"} | changes)


@pytest.fixture(params=["ct", "wsi"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return get_encoder(config(), request.param)


class Altered(nn.Module):
    """An encoder's model, and something done to its vectors."""

    def __init__(self, encoder: Encoder, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner = encoder._model
        self.change = change

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.change(self.inner(images))


def altered(encoder: Encoder, change: Callable[[torch.Tensor], torch.Tensor], **spec: Any) -> Encoder:
    return Encoder(dataclasses.replace(encoder.spec, **spec), Altered(encoder, change), CPU)


@pytest.mark.parametrize(
    ("modality", "digest"),
    [("ct", "8f1529e8a03a"), ("wsi", "9b5c7a3efb47")],
)
def test_phantoms_never_change(modality: str, digest: str) -> None:
    units = SPECS[modality].phantom()
    assert len(units) == PHANTOMS and hashlib.sha256(units.tobytes()).hexdigest()[:12] == digest


def test_the_first_worker_records_and_later_ones_compare(tmp_path: Path, encoder: Encoder) -> None:
    first = check_golden(encoder, tmp_path / encoder.spec.store_name)
    record = json.loads((tmp_path / encoder.spec.store_name / RECORD).read_text())
    assert first.recorded and first.batch_invariant and record["batch_invariant"] is True
    assert np.array_equal(np.array(record["vectors"], np.float32), encoder.encode(encoder.spec.preprocess.phantom()))
    assert record["spec_hash"] == encoder.spec.spec_hash and record["label"] == encoder.spec.label
    assert {"torch", "transformers", "device", "precision", "threads", "compiled"} == record["environment"].keys()
    again = check_golden(encoder, tmp_path / encoder.spec.store_name)
    assert not again.recorded and again.exact and again.max_error == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v * float("nan"), "not finite"),
        (lambda v: v / 0, "not finite"),
        (lambda v: v * 0, "of zeros"),
        (lambda v: v * 0 + 3, "values are all equal"),
        (lambda v: v * 0 + torch.arange(v.shape[1]), "do not depend on the image"),
    ],
)
def test_vectors_that_cannot_be_right_stop_the_worker(
    tmp_path: Path, encoder: Encoder, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    with pytest.raises(TimeloomError, match=message) as caught:
        check_golden(altered(encoder, change), tmp_path)
    assert "\n" not in str(caught.value) and caught.value.remedy and not (tmp_path / RECORD).exists()


def elsewhere(folder: Path, **changes: Any) -> None:
    """Makes the record one of another environment."""
    record = json.loads((folder / RECORD).read_text())
    record["environment"] |= {"device": "another GPU"} | changes
    (folder / RECORD).write_text(json.dumps(record))


def test_the_same_environment_must_make_the_same_bits(tmp_path: Path, encoder: Encoder) -> None:
    check_golden(encoder, tmp_path)
    near = altered(encoder, lambda vectors: vectors * (1 + 1e-6))
    with pytest.raises(TimeloomError, match="in the same environment"):
        check_golden(near, tmp_path)
    near.compiled = True
    elsewhere(tmp_path, device=json.loads((tmp_path / RECORD).read_text())["environment"]["device"], compiled=True)
    assert not check_golden(near, tmp_path).exact, "torch.compile may choose other kernels in each process"
    near.compiled = False
    elsewhere(tmp_path)
    found = check_golden(near, tmp_path)
    assert not found.exact and found.cosine > 0.999999 and 0 < found.max_error < 1e-5


@pytest.mark.parametrize("change", [lambda v: v * 1.01, lambda v: v.flip(1), lambda v: v.roll(1, 1)])
def test_other_vectors_are_refused_in_any_environment(
    tmp_path: Path, encoder: Encoder, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    check_golden(encoder, tmp_path)
    elsewhere(tmp_path)
    with pytest.raises(TimeloomError, match="by another GPU"):
        check_golden(altered(encoder, change), tmp_path)


def test_other_weights_behind_the_same_spec_are_found(tmp_path: Path, encoder: Encoder) -> None:
    modality = "ct" if encoder.spec.preprocess == SPECS["ct"] else "wsi"
    check_golden(encoder, tmp_path)
    elsewhere(tmp_path)
    other = build_encoder(config(seed=1), modality)
    with pytest.raises(TimeloomError, match="belongs to another encoder"):
        check_golden(other, tmp_path)
    disguised = Encoder(encoder.spec, other._model, CPU)
    with pytest.raises(TimeloomError, match="other golden vectors"):
        check_golden(disguised, tmp_path)


def test_bf16_is_compared_with_its_own_tolerance(tmp_path: Path) -> None:
    rounded = get_encoder(config(precision="bf16"), "ct")
    check_golden(rounded, tmp_path)
    elsewhere(tmp_path)
    found = check_golden(altered(rounded, lambda vectors: vectors * 1.01), tmp_path)
    assert not found.exact and 0.005 < found.max_error < 0.02
    with pytest.raises(TimeloomError, match="other golden vectors"):
        check_golden(altered(rounded, lambda vectors: vectors * 1.1), tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"spec_hash": 1, "label": "", "vectors": [], "environment": {}}'])
def test_a_damaged_record_is_one_line(tmp_path: Path, encoder: Encoder, content: str) -> None:
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(TimeloomError, match=r"encoder\.json .* is damaged"):
        check_golden(encoder, tmp_path)


@pytest.mark.parametrize("change", [[1.0], "x", None, ["x"] * WIDTH, [None] * WIDTH, [float("nan")] * WIDTH])
def test_a_record_with_damaged_vectors_is_one_line(tmp_path: Path, encoder: Encoder, change: Any) -> None:
    check_golden(encoder, tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    record["vectors"][0] = change
    (tmp_path / RECORD).write_text(json.dumps(record))
    with pytest.raises(TimeloomError, match=r"encoder\.json .* is damaged"):
        check_golden(encoder, tmp_path)


def test_vectors_that_depend_on_their_neighbours_are_recorded_as_such(tmp_path: Path, encoder: Encoder) -> None:
    leaking = altered(encoder, lambda vectors: vectors + 1e-5 * vectors.mean(dim=0))
    assert not check_golden(leaking, tmp_path).batch_invariant
    assert json.loads((tmp_path / RECORD).read_text())["batch_invariant"] is False


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"}, {"compile": True}, {"output": "sequence"}, {"store_dtype": "float32"},
        {"batch_size": 64}, {"seed": 1}, {"width": 32},
    ],
)  # fmt: skip
def test_whatever_changes_a_stored_byte_makes_another_store(changes: dict[str, Any]) -> None:
    assert encoder_spec(config(**changes), "ct").store_name != encoder_spec(config(), "ct").store_name


def test_what_is_chosen_by_itself_names_the_store_as_if_it_were_given() -> None:
    given = config(precision="float32", batch_size=32, store_dtype="float16", output="mean", compile=False)
    assert encoder_spec(given, "ct").store_name == encoder_spec(config(), "ct").store_name
    spec = encoder_spec(config(), "ct")
    assert (spec.precision, spec.batch_size, spec.output, spec.store_dtype) == ("float32", 32, "mean", "float16")


@pytest.fixture
def gpu_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose NVIDIA driver is loaded; delete the file and there is none."""
    mark = tmp_path / "nvidiactl"
    mark.touch()
    monkeypatch.setattr(device, "NVIDIA_MARKS", (tmp_path / "absent", mark))
    return mark


def real(**changes: Any) -> EncoderConfig:
    values = {"name": "dinov2-vitl14", "width": 1024, "weights": "/weights/none.safetensors"}
    return EncoderConfig.model_validate(values | changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_gpu_that_torch_cannot_use_is_no_silent_fall_back(gpu_machine: Path) -> None:
    with pytest.raises(TimeloomError, match=r"has an NVIDIA GPU that torch cannot use.*device: cpu"):
        build_encoder(real(), "ct")
    with pytest.raises(TimeloomError, match="asks for device cuda and there is none"):
        build_encoder(real(device="cuda"), "ct")
    with pytest.raises(TimeloomError, match=r"weights .* missing"):
        build_encoder(real(device="cpu"), "ct")
    assert build_encoder(config(device="auto"), "ct").device == CPU, "the stand-in needs no GPU"
    gpu_machine.unlink()
    with pytest.raises(TimeloomError, match=r"weights .* missing"):
        build_encoder(real(), "ct")


def test_precision_and_batch_follow_the_device(gpu_machine: Path) -> None:
    from embedders.encoders.spec import describe

    def chosen(**changes: Any) -> EncoderSpec:
        return describe(real(**changes), "ct", "ab" * 32)

    assert (chosen().precision, chosen().batch_size) == ("bf16", 128)
    assert chosen(device="cpu").precision == "float32" and chosen(precision="float32").precision == "float32"
    gpu_machine.unlink()
    assert (chosen().precision, chosen().batch_size) == ("float32", 32)
    assert chosen(device="cuda").precision == "bf16"


def test_one_of_several_gpus_is_chosen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert device.open_device("cuda", "cuda", 1) == torch.device("cuda", 1)
    assert device.open_device("cuda", "auto") == torch.device("cuda", 0)
    assert device.open_device("cpu", "cpu", 1) == CPU
    for index in (2, -1):
        with pytest.raises(TimeloomError, match=f"no GPU {index}.*sees 2"):
            device.open_device("cuda", "cuda", index)
