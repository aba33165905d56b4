"""HTML of a report: one file that loads nothing. Every text that comes from a run is escaped here."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

__all__ = ["figure", "legend", "page", "table"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .7rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
figure { margin: 1rem 0; overflow-x: auto } figcaption { color: #555 } svg { max-width: 100%; height: auto }
ul.legend { list-style: none; padding: 0 } ul.legend li { display: inline-block; margin-right: 1.5rem }
ul.legend span { display: inline-block; width: 1.5rem; margin-right: .4rem; vertical-align: middle }
"""
# The browser itself refuses whatever would be loaded or executed.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document of finished parts."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            f'<head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>",
            f"<body><h1>{escape(title)}</h1>",
            *parts,
            "</body></html>\n",
        ]
    )


def figure(heading: str, svg: str, caption: str) -> str:
    """A chart, whose SVG goes in as it is, under its heading."""
    return f"<h2>{escape(heading)}</h2>\n<figure>\n{svg}\n<figcaption>{escape(caption)}</figcaption></figure>"


def legend(lines: Sequence[tuple[str, str, str]]) -> str:
    """The runs' names, each behind its line: (name, colour, dash), the last two as CSS calls them."""
    items = (
        f'<li><span style="border-top: 3px {dash} {colour}"></span>{escape(name)}</li>' for name, colour, dash in lines
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def table(heading: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of texts under the keys of the first."""
    names = list(rows[0])
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(row[name])}</td>" for name in names) + "</tr>" for row in rows)
    return f"<h2>{escape(heading)}</h2>\n<table>\n<tr>{head}</tr>\n{body}\n</table>"
