"""What `timeloom deploy` writes."""

from importlib import import_module
from pathlib import Path

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
        assert entry["name"] == entry["work_pool"]["work_queue_name"] == deployment_name(DEPLOYED.root)
        assert entry["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
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


def test_the_file_is_yaml_that_only_this_command_replaces(tmp_path: Path) -> None:
    path = tmp_path / "prefect.yaml"
    write_file(DEPLOYED, path)
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == prefect_file(DEPLOYED)
    write_file(DEPLOYED, path)
    path.write_text("name: another project\n", encoding="utf-8")
    with pytest.raises(TimeloomError, match="is not of `timeloom deploy`"):
        write_file(DEPLOYED, path)
    assert path.read_text(encoding="utf-8") == "name: another project\n"
