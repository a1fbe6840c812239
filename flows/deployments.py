"""`timeloom deploy`: the flows of a root on the work pools of a Prefect server.

What is deployed stands in a `prefect.yaml`, which Prefect's own command applies and a site may keep in its repository.
Beside it: the work pools, a queue that lets one flow run of the root work at a time and one for flow runs that make
vectors, and automations that call a webhook where a night fails or has quarantined rows.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID

import yaml

from warehouse.errors import TimeloomError
from warehouse.files import atomic_write

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import EventTrigger

    Client = SyncPrefectClient

# Prefect takes none of these in a name.
BANNED = frozenset("/%&<>")
FAILED = ("prefect.flow-run.Failed", "prefect.flow-run.Crashed")


@dataclass(frozen=True)
class Deployed:
    """What is deployed of one root.

    Attributes:
        config, root: absolute paths on the workers' machines.
        cron: five fields, by the clock of `timezone`, an IANA name.
        pool, gpu_pool: work pools of type `process`; the second one takes the flow `embed`.
        webhook: is called where a night fails, or ends with quarantined rows or images.

    Raises:
        TimeloomError: Prefect would take a path for a template, takes no pool of such a name, or cannot call the
            webhook.
    """

    config: Path
    root: Path
    cron: str
    timezone: str = "UTC"
    pool: str = "cpu"
    gpu_pool: str = "gpu"
    webhook: str | None = None

    def __post_init__(self) -> None:
        for path in (self.config, self.root):
            if "{{" in str(path):
                raise TimeloomError(f"Prefect reads the `{{{{` of {path.name} as a template", "rename the folder")
        for option, pool in (("--pool", self.pool), ("--gpu-pool", self.gpu_pool)):
            if not pool.strip() or set(pool) & BANNED:
                signs = " ".join(sorted(BANNED))
                raise TimeloomError(f"{option} `{pool}` is no name of a work pool", f"give one without {signs}")
        if self.webhook is not None:
            try:
                address = urlsplit(self.webhook)
            except ValueError:
                address = urlsplit("")
            if address.scheme not in ("http", "https") or not address.hostname:
                raise TimeloomError("--webhook is no address", "give one that begins with https:// or http://")

    @property
    def name(self) -> str:
        """Of the root's deployments and of its queue."""
        return deployment_name(self.root)

    @property
    def embed_queue(self) -> str:
        """Of the root's flow runs that make vectors."""
        return f"{self.name}-embed"


def deployment_name(root: Path) -> str:
    """The name of a root's deployments: the folder's, made one that Prefect takes, and a hash of where it lies."""
    plain = re.sub(r"[^a-z0-9]+", "-", root.name.lower()).strip("-") or "root"
    return f"{plain}-{sha256(str(root).encode()).hexdigest()[:6]}"


def prefect_file(deployed: Deployed) -> dict[str, Any]:
    """What stands in `prefect.yaml`: one deployment a flow."""
    config, root = str(deployed.config), str(deployed.root)

    def entry(flow: str, pool: str, parameters: dict[str, Any], *crons: str) -> dict[str, Any]:
        module = "flows.nightly" if flow == "nightly" else "flows.upkeep"
        # Two nights of one root: the second one begins when the first has ended. Vectors are made by many at once.
        alone = {"concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"}} if flow != "embed" else {}
        queue = deployed.name if alone else deployed.embed_queue
        return {
            "name": deployed.name,
            "entrypoint": f"{module}.{flow}",
            "description": _SAYS[flow],
            "tags": ["timeloom", flow, deployed.root.name],
            "parameters": parameters,
            "work_pool": {"name": pool, "work_queue_name": queue},
            "schedules": [{"cron": cron, "timezone": deployed.timezone, "active": True} for cron in crons],
            **alone,
        }

    return {
        "name": "timeloom",
        # The workers' environments have timeloom installed: nothing is fetched before a run.
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": str(deployed.config.parent)}}],
        "deployments": [
            entry("nightly", deployed.pool, {"config": config, "root": root, "wait": True}, deployed.cron),
            entry("embed", deployed.gpu_pool, {"config": config, "root": root}),
            entry("verify", deployed.pool, {"root": root}),
            # The release is asked for when it is run.
            entry("backfill", deployed.pool, {"config": config, "root": root}),
            entry("gc", deployed.pool, {"place": config, "root": root, "apply": False}),
        ],
    }


_SAYS = {
    "nightly": "Raw exports to a published release.",
    "embed": "Vectors, on a machine with a GPU: ahead of the night, or for a night that is at work; many at once.",
    "verify": "Every checksum and cross-reference of the current release, recomputed.",
    "backfill": "A past night made again and held to its hash.",
    "gc": "What nobody needs any more; change `apply` to remove it.",
}


def write_file(deployed: Deployed, path: Path) -> None:
    """Writes `prefect.yaml`.

    Raises:
        TimeloomError: another project's file stands there, or it cannot be written.
    """
    try:
        is_other = path.exists() and not path.read_text(encoding="utf-8").startswith(_HEADING)
    except (OSError, UnicodeDecodeError):  # a folder, say
        is_other = True
    if is_other:
        raise TimeloomError(f"{path} is not of `timeloom deploy`", "give --file another name")
    text = yaml.safe_dump(prefect_file(deployed), sort_keys=False, width=120)
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(f"{_HEADING}\n{text}", encoding="utf-8")
    except OSError as error:
        raise TimeloomError(f"{path} cannot be written", "give --file another name") from error


_HEADING = "# Written by `timeloom deploy`, and applied by `prefect deploy --all --prefect-file` with this file's name."


def deploy(deployed: Deployed, path: Path, say: Callable[[str], None]) -> None:
    """Applies a `prefect.yaml` to the server of PREFECT_API_URL, whatever of it stands there already.

    Raises:
        TimeloomError: the server does not take it.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with get_client(sync_client=True) as client:
            for pool, queue, at_once in (
                (deployed.pool, deployed.name, 1),
                (deployed.gpu_pool, deployed.embed_queue, None),
            ):
                say(f"work pool {pool}: {_make_pool(client, pool, queue, at_once)}")
            _apply(path)
            flows = [entry["entrypoint"].rpartition(".")[2] for entry in prefect_file(deployed)["deployments"]]
            say(f"deployments: {', '.join(f'{flow}/{deployed.name}' for flow in flows)}")
            if deployed.webhook:
                for name in _make_automations(client, deployed):
                    say(f"automation: {name}")
    except PrefectHTTPStatusError as error:
        raise TimeloomError(
            f"the Prefect server refuses it: {error.response.status_code}", "look at its log, or at PREFECT_API_KEY"
        ) from error


def _make_pool(client: "Client", name: str, queue: str, at_once: int | None) -> str:
    """A work pool with a queue that lets so many flow runs at a time work; None: any number."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_work_pool(name)
        said = "as it was"
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        said = f"made; `prefect worker start --pool {name}` serves it"
    try:
        client.read_work_queue_by_name(queue, work_pool_name=name)
    except ObjectNotFound:
        client.create_work_queue(queue, work_pool_name=name, concurrency_limit=at_once)
    return said


def _apply(path: Path) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"}, check=False)
    if done.returncode:
        lines = [line.strip(" │╭╮╰╯─") for line in (done.stderr + done.stdout).splitlines()]
        last = next((line for line in reversed(lines) if line), "it said nothing")
        raise TimeloomError(f"prefect deploy fails: {last[:300]}", f"try `prefect deploy --all --prefect-file {path}`")


def _make_automations(client: "Client", deployed: Deployed) -> list[str]:
    """A webhook for nights that failed and for those with quarantined items; replaces what an earlier call made."""
    from datetime import timedelta

    from prefect.blocks.webhook import Webhook
    from prefect.events.actions import CallWebhook
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from pydantic import SecretStr

    from flows.announce import QUARANTINED

    assert deployed.webhook is not None, "asked for"
    identity = Webhook(url=SecretStr(deployed.webhook)).save(f"timeloom-{deployed.name}", overwrite=True)
    block = identity if isinstance(identity, UUID) else UUID(str(identity))

    def trigger(expect: set[str], **matching: Any) -> "EventTrigger":
        return EventTrigger(
            expect=expect, posture=Posture.Reactive, threshold=1, within=timedelta(seconds=0), **matching
        )

    related = {"prefect.resource.role": "deployment", "prefect.resource.name": deployed.name}
    wanted = {
        f"timeloom: a flow run of {deployed.name} failed": trigger(
            set(FAILED), match={"prefect.resource.id": "prefect.flow-run.*"}, match_related=related
        ),
        f"timeloom: quarantined in {deployed.name}": trigger(
            {QUARANTINED}, match={"prefect.resource.id": f"timeloom.root.{deployed.name}"}
        ),
    }
    for name, each in wanted.items():
        for former in client.read_automations_by_name(name):
            client.delete_automation(former.id)
        payload = '{"automation": "{{ automation.name }}", "event": "{{ event.event }}", "id": "{{ event.id }}"}'
        action = CallWebhook(block_document_id=block, payload=payload)
        client.create_automation(AutomationCore(name=name, trigger=each, actions=[action]))
    return list(wanted)
