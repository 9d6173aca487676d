"""One static page: our own frame and style around a body of HTML. Names no address outside the page."""

from __future__ import annotations

import re
from functools import cache
from html import escape

from pygments.formatters import HtmlFormatter

from servelab.lab.question import STYLE as QUESTION

OUTSIDE = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\b(?:src|data)=["']?\s*(?:https?:)?//"""
    r"""|<link\b[^>]*?\bhref=["']?\s*(?:https?:)?//|@import\s|url\(["']?\s*(?:https?:)?//"""
    r"""|\bimport\s*(?:\(\s*|[^;"']{0,200}?\bfrom\s*)?["'](?:https?:)?//""",
    re.IGNORECASE,
)

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --quiet: #5a5a5a; --line: #d4d4d4;
  --code: #f5f5f3; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #16181b; --quiet: #a8a8a8; --line: #3b3f45; --link: #7db8f5; }
}
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; background: var(--paper);
  color: var(--ink); font: 1.05rem/1.6 system-ui, "Segoe UI", "Noto Sans", sans-serif; }
nav { display: flex; justify-content: space-between; gap: 1rem; padding-bottom: .6rem; margin-bottom: 1.5rem;
  border-bottom: 1px solid var(--line); font-size: .95rem; }
a { color: var(--link); }
h1 { line-height: 1.2; }
h2 { margin-top: 2.4rem; }
.anchor-link, .prompt { display: none; }
.text_cell_render > p, .text_cell_render > ul, .text_cell_render > ol { max-width: 46rem; }
.input_area { background: var(--code); border-left: .25rem solid var(--line); margin: 1rem 0 .6rem; }
.input_area pre, details pre { margin: 0; padding: .7rem 1rem; overflow-x: auto; font-size: .88rem;
  line-height: 1.45; color: #1c1c1c; }
details pre { background: var(--code); }
/* Results keep the light ground they were made for. */
.output { overflow-x: auto; }
.output_area { margin: .4rem 0 1rem; padding: .3rem .6rem; background: #ffffff; color: #1c1c1c; }
.output_area img { max-width: 100%; height: auto; }
/* On a phone a figure keeps the size at which its letters can be read, and scrolls within its own frame. */
@media (max-width: 600px) {
  .output_area img, .output_area .servelab-knobs img { max-width: none; width: 40rem; }
}
.output_area pre { margin: 0; white-space: pre-wrap; font-size: .88rem; }
details { margin: .5rem 0; padding: .3rem .8rem; border: 1px solid var(--line); border-radius: .3rem; }
summary { cursor: pointer; }
.servelab-comparison[data-expected]::before { content: "You expected: " attr(data-expected);
  font-weight: 600; }
:not(pre) > code { overflow-wrap: anywhere; }
pre { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
"""


@cache
def _style() -> str:
    colours: str = HtmlFormatter(style="default").get_style_defs(".highlight")
    return STYLE + QUESTION + colours


def page(title: str, body: str, before: str = "", after: str = "") -> str:
    """A whole page. `before` and `after` are HTML for the two ends of the line above and below it."""
    ways = f"<nav><span>{before}</span><span>{after}</span></nav>" if before or after else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_style()}</style>\n</head>\n<body>\n"
        f"{ways}\n<main>\n{body}\n</main>\n{ways}\n</body>\n</html>\n"
    )


def markdown_page(title: str, markdown: str) -> str:
    from nbconvert.filters import markdown2html

    return page(title, markdown2html(markdown))


def outside(html: str) -> list[str]:
    """Everything that a browser would fetch from elsewhere to show this page; links are none of it."""
    return [html[found.start() : found.end() + 60] for found in OUTSIDE.finditer(html)]
