"""Flows beside the nightly one: encode ahead of a night, verify a release, collect what nobody needs."""

from pathlib import Path

from prefect import flow, get_run_logger

from flows import artifacts, parameters
from flows.commands.gc import carry_out, described, read_kept
from flows.nightly import carry_out_step
from flows.runs.run import open_run
from flows.runs.settings import RunSettings
from validation.verify import verify_release
from warehouse.errors import TimeloomError

# The stage after which everything that a GPU does is done.
ENCODED = "embed"


@flow(name="embed", persist_result=False)
def embed(
    config: parameters.Config,
    root: parameters.Root = None,
    workers: parameters.Workers = None,
    wait: parameters.Wait = True,
) -> None:
    """Indexes tables and images and makes the vectors, on a machine with a GPU say; publishes nothing.

    The next night goes on from there.
    """
    settings = RunSettings(Path(config), Path(root) if root else None, workers=workers, wait=wait)
    with open_run(settings, None) as run:
        for name, step in run.steps:
            carry_out_step(run, name, step)
            if name == ENCODED:
                break


@flow(name="verify", persist_result=False)
def verify(root: parameters.Warehouse) -> int:
    """Recomputes every checksum and cross-reference of the current release; fails where one is wrong."""
    findings = verify_release(Path(root))
    artifacts.show_findings(findings)
    wrong = [finding for finding in findings if not finding.ok]
    for finding in wrong:
        get_run_logger().error("%s: %s", finding.check, finding.detail)
    if wrong:
        raise TimeloomError(f"{len(wrong)} of {len(findings)} checks fail", "see the artifact `findings`")
    return len(findings)


@flow(name="gc", persist_result=False)
def gc(place: parameters.Place, root: parameters.Root = None, apply: parameters.Apply = False) -> None:
    """Removes old releases, segments, work, logs and vectors that nobody needs; without `apply` it only says what."""
    kept = read_kept(Path(place), Path(root) if root else None, {})
    artifacts.show_collection(described(carry_out(kept, apply=apply)))
