"""Sliders on a page without a kernel: the pictures of all their settings, drawn when the page is made.

Runs, of a lesson, only the cells whose names its sliders use. The script is that of the notebook's sliders.
"""

from __future__ import annotations

import ast
import base64
import io
import itertools
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from symtable import SymbolTable, symtable
from typing import Any

from nbformat import NotebookNode
from PIL import Image
from tqdm.auto import tqdm

from servelab.lab.editions import EditionError
from servelab.lab.editions.lesson import source
from servelab.lab.knobs import STYLE, Knobs
from servelab.lab.step_cost import shipped_step_cost

CALL = "lab.knobs("
MOST = 40  # settings: more would make the page too large
COLOURS = 48  # enough for our figures, at a third of the bytes
PAGE = """
class Held {
  constructor(held) { this.held = held; this.heard = {}; }
  get(name) {
    if (name === "picture") return Uint8Array.from(atob(this.shown().picture), (one) => one.charCodeAt(0));
    return name === "words" ? this.shown().words : this.held[name];
  }
  shown() { return this.held.pictures[this.held.places.join()]; }
  set(name, value) { this.held[name] = value; }
  on(event, hears) { (this.heard[event] ??= []).push(hears); }
  save_changes() { for (const hears of Object.values(this.heard).flat()) hears(); }
}
for (const place of document.querySelectorAll("[data-servelab-sliders]")) {
  place.removeAttribute("data-servelab-sliders");  // the first script on a page serves them all
  const held = JSON.parse(place.querySelector("script").textContent);
  place.replaceChildren();
  render({ model: new Held(held), el: place });
}
"""


def with_sliders(cells: Sequence[NotebookNode]) -> None:
    """Put HTML with all pictures in place of the saved one, in every cell that shows sliders.

    They are drawn with the step times that come with the course, as the saved results were.
    """
    for place, cell in enumerate(cells):
        if cell.cell_type == "code" and CALL in source(cell):
            data = cell.outputs[-1].data
            data["text/html"] = fragment(shown_by(cells, place))
            del data["image/png"]


def fragment(knobs: Knobs) -> str:
    """The sliders as a piece of HTML; until its script runs, the picture at the first setting is seen."""
    settings = list(itertools.product(*(range(len(one["values"])) for one in knobs.sliders)))
    if len(settings) > MOST:
        raise EditionError(
            f"{len(settings)} settings of sliders are too many for a page: offer at most {MOST}."
        )
    pictures = {}
    for places in tqdm(settings, desc="pictures of sliders", leave=False):
        drawing = knobs.drawing(places)
        picture = base64.b64encode(_small(drawing.png())).decode()
        pictures[",".join(map(str, places))] = {"picture": picture, "words": drawing.words}
    held = json.dumps({"sliders": knobs.sliders, "places": knobs.places, "pictures": pictures})
    first = pictures[",".join(map(str, knobs.places))]
    script = files("servelab.lab").joinpath("knobs.js").read_text(encoding="utf-8")
    return (
        f"<style>{STYLE}</style>\n<div data-servelab-sliders>\n"
        f'<img src="data:image/png;base64,{first["picture"]}" alt="{escape(first["words"])}">\n'
        f'<script type="application/json">{held.replace("<", chr(92) + "u003c")}</script>\n</div>\n'
        f'<script type="module">\n{script.replace("export default { render };", "")}{PAGE}</script>\n'
    )


def shown_by(cells: Sequence[NotebookNode], place: int) -> Any:
    """What the last line of a cell shows, after those cells were run whose names it needs."""
    world: dict[str, Any] = {}
    with shipped_step_cost():
        for number in _needed(cells, place):
            exec(source(cells[number]), world)
    *before, last = ast.parse(source(cells[place])).body
    exec(compile(ast.Module(before, []), "<lesson>", "exec"), world)
    return eval(compile(ast.Expression(last.value), "<lesson>", "eval"), world)  # type: ignore[attr-defined]


def _needed(cells: Sequence[NotebookNode], place: int) -> list[int]:
    """The cells before this one that make the names which it uses, and those which they use."""
    wanted, found = _used(_symbols(cells[place])), []
    for number in range(place - 1, -1, -1):
        if cells[number].cell_type == "code":
            symbols = _symbols(cells[number])
            made = {one.get_name() for one in symbols.get_symbols() if one.is_assigned() or one.is_imported()}
            if made & wanted:
                wanted = (wanted - made) | _used(symbols)
                found.append(number)
    return found[::-1]


def _symbols(cell: NotebookNode) -> SymbolTable:
    return symtable(source(cell), "<lesson>", "exec")


def _used(symbols: SymbolTable) -> set[str]:
    """Names of the lesson that a cell uses, in its functions too: not those that are local to them."""
    outermost = symbols.get_type() == "module"
    own = (one for one in symbols.get_symbols() if one.is_referenced() and (outermost or one.is_global()))
    return {one.get_name() for one in own}.union(*map(_used, symbols.get_children()))


def _small(picture: bytes) -> bytes:
    """The same PNG in fewer colours."""
    buffer = io.BytesIO()
    fewer = Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
    fewer.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
