"""Saved outputs of a notebook, without what is chance in them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import nbformat
from nbformat import NotebookNode

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"  # carries a name drawn at random for every run


PICTURE = "<img "
BAR = re.compile(r"(\d+%\|.*|\d+\w* )\[\d+:\d+[<,].*\]")  # what tqdm writes


def as_saved(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring pieces of one stream as one output: where a kernel flushes is chance.

    Without progress bars: they are shown when work takes long, and gone when it is done. And each picture
    once: its HTML, which holds it again, is for JupyterLab while a kernel runs.
    """
    merged: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "display_data" and BAR.search(output.data.get("text/plain", "")):
            continue
        if output.get("data", {}).get("text/html", "").startswith(PICTURE) and "image/png" in output.data:
            output = nbformat.from_dict({**output, "data": {**output.data}})  # type: ignore[no-untyped-call]
            del output.data["text/html"]
        last = merged[-1] if merged else None
        if last and output.output_type == "stream" == last.output_type and output.name == last.name:
            joined = {**last, "text": last.text + output.text}  # the old ones stay as they are
            merged[-1] = nbformat.from_dict(joined)  # type: ignore[no-untyped-call]
        else:
            merged.append(output)
    return merged
