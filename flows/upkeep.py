"""Flows beside the nightly one: encode ahead of a night, verify a release, make a past one again, collect what nobody
needs."""

from pathlib import Path

from prefect import flow, get_run_logger
from pydantic import PositiveInt

from flows import artifacts
from flows.commands.backfill import backfill as make_again
from flows.commands.backfill import print_rebuilt
from flows.commands.gc import carry_out, described, read_kept
from flows.nightly import carry_out_step, without_values
from flows.runs.run import open_run
from flows.runs.settings import RunSettings
from validation.verify import verify_release
from warehouse.errors import TimeloomError

# The stage after which everything that a GPU does is done.
ENCODED = "embed"


@flow(name="embed", persist_result=False)
def embed(
    config: str,
    root: str | None = None,
    workers: PositiveInt | None = None,
    wait: bool = True,
) -> None:
    """Indexes tables and images and makes the vectors, on a machine with a GPU say; publishes nothing.

    The next night goes on from there.

    Args:
        config: Path of the run's YAML, on the worker's machine.
        root: The warehouse; the configuration's `root` where this is None.
        workers: Processes on the CPU; as many as the machine has cores where this is None. A GPU has one each.
        wait: Wait until another run of this root has ended; else this one is refused.
    """
    settings = RunSettings(Path(config), Path(root) if root else None, workers=workers, wait=wait)
    with open_run(settings, None) as run:
        for name, step in run.steps:
            carry_out_step(run, name, step)
            if name == ENCODED:
                break


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
