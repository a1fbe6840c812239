"""What `timeloom deploy` writes."""

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from flows.deployments import Deployed, deployment_name, prefect_file, write_file
from warehouse.errors import TimeloomError

DEPLOYED = Deployed(Path("/site/night.yaml"), Path("/data/warehouse"), "0 2 * * *", "Europe/Vienna")


def flow_of(entrypoint: str) -> Flow[..., object]:
    module, _, name = entrypoint.rpartition(".")
    found = getattr(import_module(module), name)
    assert isinstance(found, Flow)
    return found


def test_every_flow_of_a_root_is_deployed_with_parameters_that_it_takes() -> None:
    deployments = prefect_file(DEPLOYED)["deployments"]
    assert {entry["entrypoint"].rpartition(".")[2] for entry in deployments} == {
        "nightly",
        "embed",
        "verify",
        "backfill",
        "gc",
    }
    for entry in deployments:
        flow = flow_of(entry["entrypoint"])
        asked = {"release": "2026-01-01T00-00-00Z"} if flow.name == "backfill" else {}
        assert flow.validate_parameters(entry["parameters"] | asked)
        assert entry["name"] == deployment_name(DEPLOYED.root)
        many = flow.name == "embed"
        assert entry["work_pool"]["work_queue_name"] == entry["name"] + ("-embed" if many else "")
        assert entry.get("concurrency_limit") == (None if many else {"limit": 1, "collision_strategy": "ENQUEUE"})
    pools = {entry["entrypoint"]: entry["work_pool"]["name"] for entry in deployments}
    assert pools["flows.upkeep.embed"] == "gpu"
    assert {pool for name, pool in pools.items() if not name.endswith("embed")} == {"cpu"}


def test_the_night_alone_has_a_schedule() -> None:
    schedules = {entry["entrypoint"]: entry["schedules"] for entry in prefect_file(DEPLOYED)["deployments"]}
    assert schedules.pop("flows.nightly.nightly") == [
        {"cron": "0 2 * * *", "timezone": "Europe/Vienna", "active": True}
    ]
    assert not any(schedules.values())


@pytest.mark.parametrize("entrypoint", [entry["entrypoint"] for entry in prefect_file(DEPLOYED)["deployments"]])
def test_each_parameter_has_words_in_the_form(entrypoint: str) -> None:
    for name, shown in parameter_schema(flow_of(entrypoint).fn).properties.items():
        assert len(shown.get("description", "")) > 10, name


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"root": Path("/data/{{ old }}")}, "as a template"),
        ({"pool": "cpu/nights"}, "--pool `cpu/nights` is no name of a work pool"),
        ({"gpu_pool": " "}, "--gpu-pool ` ` is no name of a work pool"),
        ({"webhook": "chat.example.org/hook"}, "--webhook is no address"),
        ({"webhook": "https://[chat"}, "--webhook is no address"),
        ({"webhook": "file:///etc/hosts"}, "--webhook is no address"),
    ],
)
def test_what_prefect_does_not_take_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(TimeloomError) as refused:
        replace(DEPLOYED, **changed)
    assert said in str(refused.value)


@pytest.mark.parametrize("name", ["Ærzte & co.", "a b'c\"d", "...", "ünï: [x]", "%s", "-"])
def test_a_root_of_any_name_is_deployed(tmp_path: Path, name: str) -> None:
    deployed = replace(DEPLOYED, root=Path("/data") / name)
    assert re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{6}", deployed.name)
    write_file(deployed, tmp_path / "prefect.yaml")
    written = yaml.safe_load((tmp_path / "prefect.yaml").read_text(encoding="utf-8"))
    assert {entry["parameters"]["root"] for entry in written["deployments"]} == {f"/data/{name}"}


def test_what_is_no_text_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xfe")
    for place in (tmp_path, tmp_path / "picture.yaml"):
        with pytest.raises(TimeloomError, match="is not of `timeloom deploy`"):
            write_file(DEPLOYED, place)


def test_the_file_is_yaml_that_only_this_command_replaces(tmp_path: Path) -> None:
    path = tmp_path / "prefect.yaml"
    write_file(DEPLOYED, path)
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == prefect_file(DEPLOYED)
    write_file(DEPLOYED, path)
    path.write_text("name: another project\n", encoding="utf-8")
    with pytest.raises(TimeloomError, match="is not of `timeloom deploy`"):
        write_file(DEPLOYED, path)
    assert path.read_text(encoding="utf-8") == "name: another project\n"
