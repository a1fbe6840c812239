"""Flows beside the nightly one: encode ahead of a night, verify a release, make a past one again, collect what nobody
needs."""

from pathlib import Path

from prefect import flow, get_run_logger
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from flows import artifacts
from flows.commands.backfill import backfill as make_again
from flows.commands.backfill import print_rebuilt
from flows.commands.gc import carry_out, described, read_kept
from flows.nightly import carry_out_step, without_values
from flows.runs.embedding import ENCODED, work
from flows.runs.run import open_run
from flows.runs.settings import RunSettings
from validation.verify import verify_release
from warehouse.errors import TimeloomError
from warehouse.publish import RootBusyError


@flow(name="embed", persist_result=False)
def embed(
    config: str,
    root: str | None = None,
    workers: PositiveInt | None = None,
    gpu: NonNegativeInt | None = None,
    idle_seconds: NonNegativeFloat = 600.0,
) -> None:
    """Makes vectors, on a machine with a GPU say; publishes nothing. Any number of these may run at once.

    Where no run is at work on the root, it indexes tables and images first, and the next night goes on from there.
    Where one is, it takes the buckets that this run wants filled, under leases, as each of them does.

    Args:
        config: Path of the run's YAML, on the worker's machine.
        root: The warehouse; the configuration's `root` where this is None.
        workers: Processes on the CPU of one that indexes; as many as the machine has cores where this is None.
        gpu: The number of the GPU of one that takes leases; the first one where this is None.
        idle_seconds: One that takes leases ends after so long without work.
    """
    settings = RunSettings(Path(config), Path(root) if root else None, workers=workers)
    try:
        with open_run(settings, None, encodes=True) as run:
            for name, step in run.steps:
                carry_out_step(run, name, step)
                if name == ENCODED:
                    return
    except RootBusyError:
        say = get_run_logger().info
        with without_values("the flow embed", "run `timeloom embed --worker --debug` on the worker's machine"):
            worked = work(settings, say, idle_seconds=idle_seconds, gpu=gpu)
        say(worked.line())
        if not worked.items:
            get_run_logger().warning("no vectors were wanted: the root was busy with another run")


@flow(name="verify", persist_result=False)
def verify(root: str) -> int:
    """Recomputes every checksum and cross-reference of the current release; fails where one is wrong.

    Args:
        root: The warehouse, on the worker's machine.
    """
    with without_values("the flow verify", "run `timeloom verify --debug` on the worker's machine"):
        findings = verify_release(Path(root))
    artifacts.show_findings(findings)
    wrong = [finding for finding in findings if not finding.ok]
    for finding in wrong:
        get_run_logger().error("%s: %s", finding.check, finding.detail)
    if wrong:
        raise TimeloomError(f"{len(wrong)} of {len(findings)} checks fail", "see the artifact `findings`")
    return len(findings)


@flow(name="backfill", persist_result=False)
def backfill(config: str, release: str, root: str | None = None, restore: bool = False) -> None:
    """Makes a past night again, beside the releases; fails where its data has not the hash that it had.

    Args:
        config: Path of the YAML of that night's run, on the worker's machine.
        release: The id of the release, also of one that is gone.
        root: The warehouse; the configuration's `root` where this is None.
        restore: Put a release that is gone back, where it comes out as it was.
    """
    settings = RunSettings(Path(config), Path(root) if root else None)
    with without_values("the flow backfill", "run `timeloom backfill --debug` on the worker's machine"):
        found = make_again(settings, release, restore=restore, progress=None)
    lines: list[str] = []
    print_rebuilt(found, lines.append)
    artifacts.show_lines("backfill", lines)
    if not found.same:
        raise TimeloomError(f"release {release} comes out otherwise than it was", "see the artifact `backfill`")


@flow(name="gc", persist_result=False)
def gc(place: str, root: str | None = None, apply: bool = False) -> None:
    """Removes old releases, segments, work, logs and vectors that nobody needs.

    Args:
        place: Path of the run's YAML, whose key `keep` says which releases stay; or the folder of a warehouse.
        root: The warehouse, where the YAML does not name it.
        apply: Remove them; else the artifact says what would go.
    """
    with without_values("the flow gc", "run `timeloom gc --debug` on the worker's machine"):
        collection = carry_out(read_kept(Path(place), Path(root) if root else None, {}), apply=apply)
    artifacts.show_collection(described(collection))
