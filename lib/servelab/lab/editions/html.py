"""The course as static pages: every lesson with its saved results, readable without Python or network.

nbconvert turns cells into HTML; the frame is ours (`page`). A widget needs a kernel, so what is shown
is the picture saved beside it; only the player, which needs none, is put in whole. A question can be
answered here too: everything up to its result is folded away until the reader opens it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import Preprocessor
from nbformat import NotebookNode

from servelab.lab.editions import require_new
from servelab.lab.editions.glossary import glossary
from servelab.lab.editions.lesson import COMMENT_ON_THE_GUESS, Lesson, lessons, predictions
from servelab.lab.editions.outputs import WIDGET_VIEW, as_saved
from servelab.lab.editions.page import markdown_page, page
from servelab.lab.editions.sliders import with_sliders
from servelab.lab.player import STATIC, player_fragment

INDEX = """# servelab

How one model on one accelerator serves many users at once: the lessons with their results. To run them
and to solve the exercises, start them with `python start.py`.

| | Lesson | After it you can | Time |
|---|---|---|---|"""

WORDS = "\n[The words that the lessons define](words.html)"

REVEAL = '<details class="reveal"><summary>Guess first. Then open this: what happened</summary>{}</details>'
SHOW_GUESS = """<script>
for (const question of document.querySelectorAll(".servelab-question")) {
  const later = (one) => question.compareDocumentPosition(one) & Node.DOCUMENT_POSITION_FOLLOWING;
  const result = [...document.querySelectorAll(".servelab-comparison")].find(later);
  if (result) question.addEventListener("change", (event) => (result.dataset.expected = event.target.value));
}
</script>"""

LESSON_LINK = re.compile(r"\]\((\d\d_\w+)\.ipynb\)")


class WithoutKernel(Preprocessor):
    """Leaves of every cell what can be seen without a kernel: nbconvert would take dead widgets.

    A link to a lesson leads to its page, and a source that the notebook folds away is left out.
    """

    def preprocess_cell(self, cell: NotebookNode, resources: Any, index: int) -> tuple[NotebookNode, Any]:
        if cell.cell_type != "code":
            cell.source = LESSON_LINK.sub(r"](\1.html)", cell.source)
            return cell, resources
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        cell.metadata["transient"] = {"remove_source": folded}  # what nbconvert's templates ask for
        cell.outputs = as_saved(cell.outputs)
        for output in cell.outputs:
            data = output.get("data", {})
            data.pop(WIDGET_VIEW, None)
            if "text/html" in data:
                data["text/html"] = COMMENT_ON_THE_GUESS.sub("", data["text/html"])
            if STATIC in data:
                picture = base64.b64decode(data["image/png"])
                data["text/html"] = player_fragment(data.pop(STATIC), picture, data["text/plain"])
                del data["image/png"]
        return cell, resources


def run(folder: Path) -> int:
    """Write all pages, and say where."""
    require_new(folder)
    everything = lessons()
    folder.mkdir(parents=True, exist_ok=True)
    for place, lesson in enumerate(everything):
        before, after = _ways(everything, place)
        text = body(lesson.path)
        html = page(lesson.title, contents(text) + text, before, after)
        (folder / f"{lesson.path.stem}.html").write_text(html, encoding="utf-8")
    (folder / "index.html").write_text(index(everything), encoding="utf-8")
    (folder / "words.html").write_text(markdown_page("Words", glossary(everything)), encoding="utf-8")
    print(f"{len(everything)} lessons in {folder}: open {folder / 'index.html'}")
    return 0


def body(notebook: Path) -> str:
    """The cells of a notebook as HTML, without a frame."""
    exporter = HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="basic", preprocessors=[WithoutKernel]
    )
    read = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    cells, done, parts = read.cells, 0, []
    with_sliders(cells)

    def converted(first: int, end: int) -> str:
        read.cells = cells[first:end]
        return str(exporter.from_notebook_node(read)[0])

    for guess in predictions(cells):
        if guess.asked < done:  # it is folded away with another one
            continue
        end = guess.compared + 1
        end += _explains(cells[end : end + 1])
        parts += [converted(done, guess.asked + 1), REVEAL.format(converted(guess.asked + 1, end))]
        done = end
    return "".join([*parts, converted(done, len(cells)), SHOW_GUESS if parts else ""])


def _explains(after: Sequence[NotebookNode]) -> bool:
    """Whether the cell behind a result says what it means; one with a heading begins something new."""
    return any(cell.cell_type == "markdown" and "## " not in cell.source for cell in after)


def contents(text: str) -> str:
    """The headings of a page, each a link to its place."""
    found = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', text)
    items = "".join(f'<li><a href="#{place}">{name}</a></li>' for place, name in found)
    return f"<details><summary>Contents</summary><ul>{items}</ul></details>\n"


def index(everything: Sequence[Lesson]) -> str:
    rows = [
        f"| {lesson.number} | [{lesson.title}]({lesson.path.stem}.html) | {'; '.join(lesson.goals)} | "
        f"{lesson.reading + lesson.exercises}&nbsp;min |"
        for lesson in everything
    ]
    return markdown_page("servelab", "\n".join([INDEX, *rows, WORDS]))


def _ways(everything: Sequence[Lesson], place: int) -> tuple[str, str]:
    """To the contents, and to the lessons before and after."""
    before = ['<a href="index.html">All lessons</a>']
    if place > 0:
        before.append(f"← {_link(everything[place - 1])}")
    after = f"{_link(everything[place + 1])} →" if place + 1 < len(everything) else ""
    return " · ".join(before), after


def _link(lesson: Lesson) -> str:
    return f'<a href="{lesson.path.stem}.html">{escape(lesson.title)}</a>'
