"""Runs Great Expectations, and is the only module that knows it: aggregates go in, booleans come out."""

import gc
import importlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from validation.areas.area import Area, Expectation


def _build(area: Area, expectation: Expectation) -> Any:
    """The Great Expectations object of one expectation."""
    gxe: Any = importlib.import_module("great_expectations.expectations")
    common: dict[str, Any] = {
        "severity": expectation.severity,
        "description": f"{expectation.severity}: {expectation.sentence}",
        "meta": {"name": area.name_of(expectation), "severity": expectation.severity, "sentence": expectation.sentence},
    }
    low, high = expectation.low, expectation.high
    if expectation.column == "*":
        return gxe.ExpectTableRowCountToBeBetween(min_value=low, max_value=high, **common)
    if expectation.pattern:
        return gxe.ExpectColumnValuesToMatchRegex(column=expectation.column, regex=expectation.pattern, **common)
    return gxe.ExpectColumnValuesToBeBetween(column=expectation.column, min_value=low, max_value=high, **common)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Importing Great Expectations and running it makes objects that stay: looking through them for garbage again and
    again takes an eighth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@_nothing_collected()
def run_suites(frames: Mapping[str, pl.DataFrame], areas: Sequence[Area], docs: Path | None) -> dict[str, bool]:
    """Runs a suite per area, and gives the success of each expectation by its name.

    An expectation that cannot be evaluated has failed; one of which Great Expectations says nothing is absent.

    Args:
        frames: the frame of each area, by its name.
        docs: where Data Docs are written; None writes none.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # else Great Expectations reports its use to its makers
    gx: Any = importlib.import_module("great_expectations")

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    context.delete_data_docs_site("local_site")
    source = context.data_sources.add_pandas("release_profile")
    success: dict[str, bool] = {}
    for area in areas:
        batch = source.add_dataframe_asset(area.name).add_batch_definition_whole_dataframe(area.name)
        built = [_build(area, expectation) for expectation in area.expectations]
        suite = context.suites.add(gx.ExpectationSuite(name=area.name, expectations=built))
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(name=area.name, data=batch, suite=suite)
        )
        checkpoint = gx.Checkpoint(name=area.name, validation_definitions=[definition], result_format="BOOLEAN_ONLY")
        pandas = frames[area.name].to_pandas(use_pyarrow_extension_array=True)
        outcome = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": pandas})
        for run in outcome.run_results.values():
            for result in run.results:
                success[result.expectation_config.meta["name"]] = bool(result.success) and not _raised(result)
    if docs is not None:
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)}
        site = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": store,
        }
        context.add_data_docs_site(site_name="quality", site_config=site)
        # Once for all suites: each building compiles every template of the pages anew.
        context.build_data_docs(site_names=["quality"], build_index=False)
    return success


def _raised(result: Any) -> bool:
    """Whether an expectation could not be evaluated: exception_info is flat, or one entry per metric."""
    info = result.exception_info or {}
    nested = [entry for entry in info.values() if isinstance(entry, dict)]
    return any(entry.get("raised_exception") for entry in (info, *nested))


# what Data Docs fetch from the network: style sheets, scripts, a logo, and an icon from beside them; what works only
# with them is hidden
_REMOTE = re.compile(
    r"<link[^>]*href=\"(?:https?://|[./]*static/)[^>]*>|<script[^>]*src=\"https?://[^>]*>\s*</script>"
    r"|<img[^>]*src=\"https?://[^>]*>",
    re.DOTALL,
)
_SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)
_STYLE = """<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1f2933}
table{border-collapse:collapse;width:100%}td,th{padding:.35rem .6rem;border-bottom:1px solid #d9dee4;text-align:left}
a{color:#1d5c8f}ul{padding-left:1.2rem}
nav,footer,.sticky,.modal,button,.btn-group,.collapse,a[data-toggle]{display:none!important}
i.text-success::before{content:"pass"}i.text-danger::before{content:"fail"}i{font-style:normal;font-weight:600}
.text-success{color:#2e6b4a}.text-danger{color:#a33327}
</style></head>"""


_INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Data Docs</title></head><body>
<h1>Data Docs</h1>
<p>What the gate expects of a release, suite by suite, as Great Expectations prints it. The numbers are in
<a href="../report.html">the quality report</a>.</p>
<table><thead><tr><th>Suite</th><th>Expectations</th><th>Not met</th><th>Outcome</th><th>Pages</th></tr></thead><tbody>
{% for suite in suites %}
<tr><td>{{ suite.name }}</td><td>{{ suite.expected }}</td><td>{{ suite.failed }}</td>
<td><i class="text-{{ 'danger' if suite.failed else 'success' }}"></i></td>
<td>{% for name, page in suite.pages.items() %}<a href="{{ page }}">{{ name }}</a> {% endfor %}</td></tr>
{% endfor %}
</tbody></table>
</body></html>
"""


def write_index(docs: Path, areas: Sequence[Area], success: Mapping[str, bool]) -> None:
    """Writes the page that leads to the others: Great Expectations' own is filled by scripts from the network.

    Args:
        success: of each expectation, by its name; one that is absent has failed.
    """
    import jinja2

    suites = []
    for area in areas:
        found = {
            "results": sorted(docs.glob(f"validations/{area.name}/**/*.html"))[-1:],
            "expectations": sorted(docs.glob(f"expectations/{area.name}.html")),
        }
        suites.append(
            {
                "name": area.name,
                "expected": len(area.expectations),
                "failed": sum(not success.get(area.name_of(entry), False) for entry in area.expectations),
                "pages": {name: page.relative_to(docs).as_posix() for name, pages in found.items() for page in pages},
            }
        )
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(_INDEX).render(suites=suites)
    (docs / "index.html").write_text(page, encoding="utf-8")


def make_offline(docs: Path) -> None:
    """Takes out of every page of Data Docs what would be fetched from the network, and styles it plainly.

    The fonts and pictures beside the pages go: 4 MB in each release, of which a plain page shows the icon at most.
    """
    shutil.rmtree(docs / "static", ignore_errors=True)
    for page in docs.rglob("*.html"):
        text = _SCRIPT.sub("", _REMOTE.sub("", page.read_text(encoding="utf-8")))
        page.write_text(text.replace("</head>", _STYLE, 1), encoding="utf-8")
