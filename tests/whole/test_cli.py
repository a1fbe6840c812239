"""The command: exit codes, one clear line for every kind of bad input, JSON for programs, an instant --help."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from extractors.simulate import simulate
from flows import cli
from warehouse.layout import Layout
from warehouse.manifest import read_manifest
from warehouse.modalities import INDEXED, MODALITIES
from warehouse.publish import current_release

COMMANDS = ("demo", "run", "meds", "status", "verify", "repair", "report", "simulate", "check-source", "index", "serve")
COMMANDS += ("diff", "backfill", "gc")
HEAVY = ("torch", "transformers", "prefect", "great_expectations", "apache_beam", "matplotlib", "openslide", "polars")
PROGRESS = re.compile(r"\w+: \d+ of \d+")


def timeloom(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command as a person would."""
    command = [str(Path(sys.executable).with_name("timeloom")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@dataclass
class Site:
    """A hospital's tables, a configuration and a root."""

    folder: Path
    root: Path

    @property
    def tables(self) -> Path:
        return self.folder / "tables"

    @property
    def config(self) -> Path:
        return self.folder / "run.yaml"

    def configure(self, **changes: object) -> None:
        """Writes the configuration, with top-level keys changed."""
        plain = {
            "name": "small",
            "sources": [{"source": "simulated-hospital", "path": "tables"}],
            "deid": {"mode": "synthetic"},
            "buckets": 2,
            "limits": {"unparsable_times": 0.05},
        }
        self.config.write_text(yaml.safe_dump(plain | changes))

    @property
    def command(self) -> list[str]:
        """What runs a night on it."""
        return ["run", str(self.config), "--root", str(self.root), "--workers", "1", "--direct", "--json"]

    def run(self, *more: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return timeloom(*self.command, *more, **environment)

    def state(self) -> tuple[str, list[str], str]:
        """What `current` says, every release, and the current one's content hash; fails where it is not readable."""
        current = current_release(Layout(self.root))
        assert current is not None
        names = sorted(path.name for path in (self.root / "releases").iterdir())
        return str(self.root.joinpath("current").readlink()), names, read_manifest(current.manifest).content_hash


# A process of its own imports for a second, and before it publishes for five: where it is not what is tested, the
# command's entry point is called in this one.
InThisProcess = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InThisProcess:
    """Runs the command in this process."""

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        monkeypatch.setattr(sys, "argv", ["timeloom", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Twenty patients without images, published."""
    folder = tmp_path_factory.mktemp("small")
    simulate(folder / "hospital", subjects=20, seed=3, imaging_share=0.0)
    shutil.move(folder / "hospital" / "tables", folder / "tables")
    site = Site(folder, folder / "warehouse")
    site.configure()
    done = site.run()
    assert done.returncode == 2, done.stderr
    return site


@pytest.fixture
def site(published: Site, tmp_path: Path) -> Site:
    """The same hospital, to be spoiled, over the same root, which nothing may touch."""
    shutil.copytree(published.tables, tmp_path / "tables")
    spoiled = Site(tmp_path, published.root)
    spoiled.configure()
    return spoiled


def drop_table(site: Site) -> None:
    (site.tables / "labs.csv").unlink()


def drop_column(site: Site) -> None:
    path = site.tables / "labs.csv"
    path.write_text(path.read_text().replace("result_time", "resulted", 1))


def empty_table(site: Site) -> None:
    (site.tables / "labs.csv").write_text("")


def only_headers(site: Site) -> None:
    for path in site.tables.glob("*.csv"):
        path.write_text(path.read_text().splitlines()[0] + "\n")


def not_text(site: Site) -> None:
    (site.tables / "labs.csv").write_bytes((site.tables / "labs.csv").read_bytes() + b"L9,\xff\xfe,,,,,,\n")


def not_parquet(site: Site) -> None:
    (site.tables / "labs.csv").unlink()
    (site.tables / "labs.parquet").write_text("this is no Parquet")


def drop_folder(site: Site) -> None:
    shutil.rmtree(site.tables)


def misspell_key(site: Site) -> None:
    site.configure(bucket=2)


def misspell_inner_key(site: Site) -> None:
    site.configure(limits={"unparseable_times": 0.1})


def misspell_source_key(site: Site) -> None:
    site.configure(sources=[{"source": "simulated-hospital", "pth": "tables"}])


def unknown_source(site: Site) -> None:
    site.configure(sources=[{"source": "mimc", "path": "tables"}])


def other_buckets(site: Site) -> None:
    site.configure(buckets=3)


def no_yaml(site: Site) -> None:
    site.config.write_text("{ sources: [")


def empty_config(site: Site) -> None:
    site.config.write_text("")


def drop_config(site: Site) -> None:
    site.config.unlink()


RANDOM = {"name": "random-dinov2", "width": 1024}
CT = {"path": "ct", "encoder": RANDOM}


def images_without_encoder(site: Site) -> None:
    site.configure(modalities={"ct": {"path": "ct"}})


def drop_images(site: Site) -> None:
    site.configure(modalities={"ct": CT})


def earlier_keys(site: Site) -> None:
    site.configure(images={"ct": {"path": "ct"}}, encoders={"ct": RANDOM})


def earlier_encoders(site: Site) -> None:
    site.configure(modalities={"ct": CT}, encoders={"ct": RANDOM})


def unknown_modality(site: Site) -> None:
    site.configure(modalities={"mri": CT})


def misspell_modality_key(site: Site) -> None:
    site.configure(modalities={"ct": CT | {"time_zone": "Europe/Vienna"}})


def key_of_another_modality(site: Site) -> None:
    site.configure(modalities={"ct": CT | {"max_failed_tiles": 0.2}})


def misspell_encoder_key(site: Site) -> None:
    site.configure(modalities={"ct": {"path": "ct", "encoder": RANDOM | {"widht": 3}}})


def unknown_encoder(site: Site) -> None:
    site.configure(modalities={"ct": {"path": "ct", "encoder": {"name": "resnet", "width": 3}}})


def slides_without_crosswalk(site: Site) -> None:
    site.configure(modalities={"wsi": {"path": "slides", "encoder": RANDOM}})


def drop_crosswalk(site: Site) -> None:
    (site.folder / "slides").mkdir()
    site.configure(modalities={"wsi": {"path": "slides", "crosswalk": {"file": "slides.csv"}, "encoder": RANDOM}})


def unreadable_dates(site: Site) -> None:
    path = site.tables / "labs.csv"
    path.write_text(re.sub(r"(\d{4})-(\d\d)-(\d\d) (\d\d)", r"\3 of \2 in \1 at \4", path.read_text()))


def other_deid(site: Site) -> None:
    site.configure(deid={"mode": "safe_harbor_year"})


BAD_INPUT: list[tuple[Callable[[Site], None], list[str]]] = [
    (drop_table, ["table labs", "export it"]),
    (drop_column, ["table labs", "column result_time", "mend"]),
    (empty_table, ["table labs", "has no header line", "export it again"]),
    (only_headers, ["no events", "YAML"]),
    (not_text, ["table labs", "UTF-8"]),
    (not_parquet, ["table labs", "check the file"]),
    (drop_folder, ["sources.0.path does not exist", "mend sources.0.path"]),
    (misspell_key, ["key bucket is unknown", "did you mean buckets?"]),
    (misspell_inner_key, ["limits.unparseable_times", "did you mean unparsable_times?"]),
    (misspell_source_key, ["sources.0.p", "docs/configuration.md"]),
    (unknown_source, ["no source mimc", "simulated-hospital"]),
    (other_buckets, ["another number of buckets", "another root"]),
    (no_yaml, ["run.yaml is no YAML", "docs/configuration.md"]),
    (empty_config, ["run.yaml holds no configuration", "docs/configuration.md"]),
    (drop_config, ["cannot read the configuration", "existing file"]),
    (images_without_encoder, ["modalities.ct", "give `encoder`, or `encoders` for several"]),
    (drop_images, ["modalities.ct.path does not exist", "mend modalities.ct.path"]),
    (earlier_keys, ["the key images is gone", "write modalities"]),
    (earlier_encoders, ["the key encoders is gone", "modalities.<name>.encoder"]),
    (unknown_modality, ["modalities.mri is unknown", "known keys are ct, wsi"]),
    (misspell_modality_key, ["modalities.ct.time_zone is unknown", "did you mean timezone?"]),
    (key_of_another_modality, ["modalities.ct.max_failed_tiles is unknown", "path, crosswalk, issuers, "]),
    (misspell_encoder_key, ["modalities.ct.encoder.widht is unknown", "did you mean width?"]),
    (unknown_encoder, ["modalities.ct.encoder", "no encoder resnet", "known are dinov2-vitl14"]),
    (slides_without_crosswalk, ["no subject of their own", "modalities.wsi.crosswalk"]),
    (drop_crosswalk, ["modalities.wsi.crosswalk.file does not exist", "mend modalities.wsi.crosswalk"]),
    (unreadable_dates, ["table labs", "collected_time", "limits.unparsable_times"]),
    (other_deid, ["safe_harbor_year", "expert"]),
]


@pytest.mark.parametrize(("spoil", "said"), BAD_INPUT, ids=[spoil.__name__ for spoil, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_touches_nothing(
    spoil: Callable[[Site], None], said: list[str], site: Site, in_process: InThisProcess
) -> None:
    before = site.state()
    spoil(site)
    done = in_process(*site.command)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("timeloom: ")
    for words in said:
        assert words in lines[0]
    assert "; " in lines[0], "a remedy follows"
    assert "P0000" not in done.stderr, "no patient's id"
    assert site.state() == before


def test_a_good_run_after_bad_ones_publishes(site: Site, tmp_path: Path, in_process: InThisProcess) -> None:
    alone = Site(site.folder, tmp_path / "root of its own")
    spoil = (alone.tables / "labs.csv").read_text()
    (alone.tables / "labs.csv").write_text("")
    assert in_process(*alone.command).returncode == 1
    assert not (alone.root / "current").is_symlink()
    (alone.tables / "labs.csv").write_text(spoil)
    assert in_process(*alone.command).returncode == 2
    assert alone.state()[2] == site.state()[2], "what the failed run left behind changes nothing"


def test_an_unreadable_image_is_a_verdict(site: Site, tmp_path: Path, in_process: InThisProcess) -> None:
    alone = Site(site.folder, tmp_path / "root of its own")
    (alone.folder / "ct" / "series").mkdir(parents=True)
    (alone.folder / "ct" / "series" / "1.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 500)
    alone.configure(modalities={"ct": CT})
    done = in_process(*alone.command)
    assert done.returncode == 2, done.stderr
    assert done.stderr == ""
    status = json.loads(timeloom("status", "--root", alone.root, "--json").stdout)
    (verdict,) = status["tables"]["verdicts"]
    assert (verdict["modality"], verdict["verdict"]) == ("CT", "failed_unreadable")


@pytest.mark.parametrize("where", ["fingerprints.json", "/data/", "manifest.json", "publishing.json"])
def test_a_full_disk_is_one_line_and_touches_nothing(
    where: str, site: Site, in_process: InThisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        if where in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = site.state()
    with (site.tables / "labs.csv").open("a") as file:
        file.write("L999999999999,P000001,E0000010001,6690-2,2016-02-29 08:51:00,2016-02-29 12:31:00,9.9,10*3/uL\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        done = in_process(*site.command)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("timeloom: the disk is full; free space and run again; it resumes")
    assert site.state() == before


def test_debug_shows_the_traceback(site: Site) -> None:
    drop_column(site)
    done = site.run("--debug")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "require" in done.stderr, "of the task itself"


def test_a_terminal_less_run_says_plain_lines(site: Site) -> None:
    drop_column(site)
    done = timeloom("run", site.config, "--root", site.root, "--workers", 1, "--direct")
    lines = [line for line in done.stderr.splitlines() if not PROGRESS.fullmatch(line)]
    assert len(lines) == 1
    assert lines[0].startswith("timeloom: table labs: lacks the column result_time")


def test_bad_input_is_one_line_under_prefect_too(site: Site, tmp_path: Path) -> None:
    before = site.state()
    drop_column(site)
    arguments = ("run", site.config, "--root", site.root, "--workers", 1, "--json")
    done = timeloom(*arguments, PREFECT_HOME=str(tmp_path / "prefect"))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("timeloom: table labs: lacks the column result_time; mend the export, or the source's YAML")
    assert "(log: " in line
    assert site.state() == before


def test_an_unchanged_run_says_so(published: Site) -> None:
    before = published.state()
    done = published.run()
    answer = json.loads(done.stdout)
    assert done.returncode == 2
    assert answer["published"] is False
    assert answer["release"] == before[1][-1]
    assert published.state() == before


@pytest.mark.parametrize("command", ["status", "verify", "report"])
def test_a_root_without_a_release_is_one_line(command: str, tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        done = timeloom(command, "--root", root)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("timeloom: ")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command: str) -> None:
    done = timeloom(*([command] if command else []), "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: timeloom")
    assert done.stderr == ""
    if not command:
        assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_instant(command: str) -> None:
    script = (
        "import sys\n"
        "sys.argv[0] = 'timeloom'\n"
        "from flows.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    arguments = [sys.executable, "-c", script, *([command] if command else []), "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["status", "--nonsense"], ["demo", "--subjects", "3"]])
def test_a_wrong_command_line_exits_1_without_a_traceback(arguments: list[str]) -> None:
    done = timeloom(*arguments)
    assert done.returncode == 1, "2 would say that a release was published"
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_of_the_demo(demo_release: Path) -> None:
    done = timeloom("status", "--root", demo_release, "--json")
    assert done.returncode == 0
    status = json.loads(done.stdout)
    current = current_release(Layout(demo_release))
    assert current is not None
    manifest = read_manifest(current.manifest)
    assert status["release"] == current.path.name
    assert status["content_hash"] == manifest.content_hash
    shown = status["tables"]
    assert sum(row["subjects"] for row in shown["table_a1"]) == 150
    assert {row["table"]: row["difference"] for row in shown["counts"]} == dict.fromkeys(
        ["deaths", "diagnoses", "encounters", "labs", "medications", "patients", "procedures"], 0
    )
    tables = demo_release.parent / "hospital" / "tables"
    for row in shown["counts"]:
        assert row["raw"] == len((tables / f"{row['table']}.csv").read_text().splitlines()) - 1
    names = {modality.title: modality.name for modality in MODALITIES.values()}
    verdicts: dict[str, dict[str, int]] = {}
    for row in shown["verdicts"]:
        verdicts.setdefault(names[row["modality"]], {})[row["verdict"]] = row["items"]
    assert verdicts == manifest.verdicts and set(verdicts) == set(INDEXED)
    labels = [label for encoders in status["encoders"].values() for label in encoders.values()]
    assert len(labels) > 1
    assert all(label.startswith("random-") for label in labels)
    said = timeloom("status", "--root", demo_release).stdout
    for word in (current.path.name, *(row["table"] for row in shown["counts"]), *labels):
        assert word in said


def test_verify_of_the_demo_and_of_a_damaged_one(demo_release: Path, tmp_path: Path) -> None:
    done = timeloom("verify", "--root", demo_release, "--json")
    assert done.returncode == 0
    findings = json.loads(done.stdout)
    assert len(findings) >= 9
    assert all(finding["ok"] for finding in findings)
    assert all(line.startswith("ok ") for line in timeloom("verify", "--root", demo_release).stdout.splitlines())

    shutil.copytree(demo_release, tmp_path / "copy", symlinks=True)
    current = current_release(Layout(tmp_path / "copy"))
    assert current is not None
    damaged = current.events(0)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    done = timeloom("verify", "--root", tmp_path / "copy", "--json")
    assert done.returncode == 1
    bad = {finding["check"]: finding["detail"] for finding in json.loads(done.stdout) if not finding["ok"]}
    assert "data/0000.parquet" in bad["files"]
    assert "Traceback" not in done.stderr
