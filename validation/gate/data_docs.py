"""Data Docs: what the gate expects of a release and what it found, as Great Expectations prints it, for any browser.

A page shows outcomes and no number, so most nights would print what the night before printed: a suite's pages are taken
from the release before as long as what it expects and what it found are the same.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from pipelines.engine.context import Standing
from validation.areas.area import Area
from validation.gate import great_expectations
from validation.gate.great_expectations import DISTRIBUTION, Answer, Printer
from warehouse.files import link_or_copy, sha256_file, sha256_json
from warehouse.layout import ReleaseLayout

# What Data Docs fetch from the network: style sheets, scripts, a logo, and an icon from beside them; what works only
# with them is hidden.
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

# Great Expectations' own index is filled by scripts from the network.
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
<p>The pages of a suite are of the night on which what it expects, or what it found, was last another.</p>
</body></html>
"""


def write_docs(docs: Path, areas: Sequence[Area], answers: Mapping[str, Answer], before: Standing | None) -> None:
    """Writes two pages per area and the page that leads to them.

    Args:
        docs: quality/data_docs of a release, empty.
        before: the release that this one follows.
    """
    import jinja2

    printer = None
    suites = []
    for area in areas:
        answer = answers[area.name]
        # The name of what was found says what it was found of, so that it names the right pages of another release.
        names = [f"validations/{area.name}/{_outcome(area, answer)}.html", f"expectations/{area.name}.html"]
        former = [before.whole(_in_release(name)) if before else None for name in names]
        if all(former):
            for name, same in zip(names, former, strict=True):
                assert same is not None
                link_or_copy(same, docs / name)
        else:
            printer = printer or Printer()
            for name, text in zip(names, printer.pages(answer), strict=True):
                (docs / name).parent.mkdir(parents=True, exist_ok=True)
                (docs / name).write_text(offline(text), encoding="utf-8")
        failed = sum(not answer.success.get(area.name_of(entry), False) for entry in area.expectations)
        linked = dict(zip(("results", "expectations"), names, strict=True))
        suites.append({"name": area.name, "expected": len(area.expectations), "failed": failed, "pages": linked})
    index = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(_INDEX).render(suites=suites)
    (docs / "index.html").write_text(index, encoding="utf-8")


def _in_release(name: str) -> str:
    return (ReleaseLayout(Path()).quality / "data_docs" / name).as_posix()


def _outcome(area: Area, answer: Answer) -> str:
    """A hash of all that an area's pages say, and of what they are printed by."""
    expected = [
        [area.name_of(entry), entry.kind, entry.sentence, entry.severity, entry.low, entry.high, entry.pattern]
        for entry in area.expectations
    ]
    printed_by = [version(DISTRIBUTION), *(sha256_file(Path(each)) for each in (__file__, great_expectations.__file__))]
    return sha256_json([area.name, expected, dict(answer.success), printed_by])[:32]


def offline(page: str) -> str:
    """A page without what would be fetched from the network, styled plainly."""
    return _SCRIPT.sub("", _REMOTE.sub("", page)).replace("</head>", _STYLE, 1)
