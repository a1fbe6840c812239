"""The engine of Beam: any runner, of which only the basic primitives are used."""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

from pipelines.engine.parcel import pack, refusal_in
from pipelines.engine.task import Task
from warehouse.errors import TimeloomError

_MOST = 400  # characters of a runner's own words
_PATH = re.compile(r"/[^\"]{3,}")
_ABSENT = re.compile(r"No module named '?([\w.]+)")
DASK = "DaskRunner"
_DASK_CLASS = "apache_beam.runners.dask.dask_runner.DaskRunner"  # Beam knows it by this name alone
# Runners that hand options which this process does not know to a service of theirs.
_PASS_ON = ("DataflowRunner", "FlinkRunner", "PortableRunner", "PrismRunner", "SparkRunner")
# `execute_parcel`, sent as code and not as a name: a worker of Dask that cannot import a name ends without a word, and
# the run waits for ever; an import that fails inside a task is an error of the task.
_ANYWHERE = lambda parcel: import_module("pipelines.engine.execute").execute_parcel(parcel)  # noqa: E731


class BeamEngine:
    """Any Beam runner. References are the elements, so every runner's basic primitives suffice.

    Args:
        runner: `FnApiRunner` runs here; DirectRunner would try to download another one.
        workers: with FnApiRunner, 1 runs in memory and more run as processes.
        options: further pipeline options, as on a command line.
    """

    def __init__(self, runner: str = "FnApiRunner", workers: int = 1, options: Iterable[str] = ()) -> None:
        self.runner = runner
        self.workers = workers
        self.options = list(options)

    def __enter__(self) -> "BeamEngine":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @property
    def _flags(self) -> list[str]:
        runner = _DASK_CLASS if self.runner == DASK else self.runner
        flags = [f"--runner={runner}", "--default_sdk_harness_log_level=WARNING", *self.options]
        if self.runner == "FnApiRunner":
            mode = "multi_processing" if self.workers > 1 else "in_memory"
            flags += [f"--direct_running_mode={mode}", f"--direct_num_workers={self.workers}"]
        elif self.runner == DASK and not any("dask_npartitions" in flag for flag in flags):
            # Else 128 tasks are one partition, which one worker runs from end to end. What is given later counts.
            flags.insert(0, "--dask_partition_size=1")
        return flags

    def map(self, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
        """Runs one linear pipeline: Create, Reshuffle, Map. Threads of one process lose elements: never used."""
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        parcels = [pack(task) for task in tasks]
        pipeline = None
        try:
            pipeline = beam.Pipeline(options=PipelineOptions(self._flags, save_main_session=False))
            self._refuse_unknown(PipelineOptions)
            with pipeline:
                _ = pipeline | beam.Create(parcels) | beam.Reshuffle() | "execute_parcel" >> beam.Map(_ANYWHERE)
        except TimeloomError as error:
            raise refusal_in(str(error)) or error from error
        except (Exception, SystemExit) as error:  # argparse ends the process over an option
            raise self._clear(error, parcels, begun=pipeline is not None) from error
        finally:
            # DaskRunner leaves a connection, and its threads, for each pipeline.
            client = getattr(getattr(pipeline, "result", None), "client", None)
            if client is not None:
                client.close()
        for task in tasks:
            done(task.key)

    def _refuse_unknown(self, options: Any) -> None:
        """Raises where an option is none of this process's; Beam would leave it out, and say so in a warning."""
        if self.runner in _PASS_ON:
            return
        parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, conflict_handler="resolve")
        for kind in options.__subclasses__():
            kind._add_argparse_args(parser)
        _, unknown = parser.parse_known_args(self.options)
        if unknown:
            raise TimeloomError(
                f"the Beam runner {self.runner} has no option {unknown[0].partition('=')[0]}",
                "mend --beam-option; an option is written --beam-option=--name=value",
            )

    def _clear(self, error: BaseException, parcels: Sequence[str], *, begun: bool) -> TimeloomError:
        """What a person can do about a failure, in one line.

        Args:
            begun: the runner itself was found.
        """
        if (refused := refusal_in(str(error))) is not None:
            return refused
        if begun and (absent := _ABSENT.search(str(error))):
            return TimeloomError(
                f"a worker of the Beam runner {self.runner} has no module {absent[1]}",
                "install timeloom with the same constraints.txt on every worker, and run again; it resumes",
            )
        return TimeloomError(
            f"the Beam runner {self.runner} failed: {words_of(error, parcels)}",
            "mend --runner and --beam-option, or see its log; run again, it resumes",
        )


def words_of(error: BaseException, parcels: Sequence[str]) -> str:
    """What a runner says of its failure, in one line; its kind alone where that may quote a task, whose paths may hold
    a patient's name."""
    kind, said = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, SystemExit):
        return "an option is wrong, see above"
    paths = {path for parcel in parcels for path in _PATH.findall(parcel)}
    quotes = "while running" in said or "execute_parcel" in said or any(path in said for path in paths)
    return kind if quotes or not said else f"{kind}: {said[:_MOST]}"
