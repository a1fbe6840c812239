"""Reports over HTTP: those of releases, and nothing else of the root."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.reports import REPORTS, ReportServer, address_of, served_file
from warehouse.layout import Layout, ReleaseLayout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "root")
    for name in ("first", "second"):
        release = ReleaseLayout(layout.releases / name)
        (release.quality / "data_docs").mkdir(parents=True)
        release.report.write_text(name, encoding="utf-8")
        (release.quality / "data_docs" / "index.html").write_text("docs", encoding="utf-8")
        (release.path / "data").mkdir()
        (release.path / "data" / "0000.parquet").write_bytes(b"events")
    layout.current.symlink_to(Path("releases") / "first")
    (tmp_path / "secret.html").write_text("secret", encoding="utf-8")
    (ReleaseLayout(layout.releases / "second").quality / "link.html").symlink_to(tmp_path / "secret.html")
    return layout


@pytest.fixture
def server(layout: Layout) -> Iterator[ReportServer]:
    server = ReportServer(layout)
    yield server
    server.stop()


def get(server: ReportServer, path: str) -> str:
    with urllib.request.urlopen(server.url + path, timeout=10) as answer:
        return str(answer.read().decode())


def test_reports_of_every_release_are_served(server: ReportServer) -> None:
    assert get(server, "/first/quality/report.html") == "first"
    assert get(server, "/second/quality/report.html") == "second"
    assert get(server, "/second/quality/data_docs/index.html") == "docs"
    assert get(server, "/") == get(server, "/current/quality/report.html") == "first"


@pytest.mark.parametrize(
    "path",
    [
        "/first/data/0000.parquet",
        "/first/quality/../data/0000.parquet",
        "/first/quality/%2e%2e/data/0000.parquet",
        "/../secret.html",
        "/second/quality/link.html",
        "/first/quality/",
        "/first/quality",
        "/first",
        "/third/quality/report.html",
        "/first/quality/a%00b",
        f"/first/quality/{'a' * 300}",
    ],
)
def test_nothing_else_is(server: ReportServer, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(server, path)
    assert refused.value.code == 404


def test_a_name_that_leads_here_is_not_answered(server: ReportServer) -> None:
    for host, answered in (("reports.example.org", False), ("localhost:8000", True)):
        asked = urllib.request.Request(server.url + "/", headers={"Host": host})
        if answered:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                assert answer.read() == b"first"
        else:
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(asked, timeout=10)


def test_a_path_leads_to_a_file_of_a_report_alone(layout: Layout) -> None:
    assert served_file(layout, "/first/quality/report.html?x=1") == ReleaseLayout(layout.releases / "first").report
    assert served_file(layout, "/first/data/0000.parquet") is None
    assert served_file(layout, "/second/quality/link.html") is None


def test_the_address_of_the_current_report(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REPORTS, raising=False)
    assert address_of(layout.root) is None
    monkeypatch.setitem(os.environ, REPORTS, "https://reports.example.org/night/")
    assert address_of(layout.root) == "https://reports.example.org/night/first/quality/report.html"
