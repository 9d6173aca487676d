"""How long a lesson takes to read, by a rule, so that what its header promises can be checked.

150 words a minute for someone who reads English as a second language, half a minute for a code
cell, a minute for a figure or a guess.
"""

from __future__ import annotations

import re
from typing import Any

WORDS_A_MINUTE = 150
CODE_CELL = 0.5
FIGURE_OR_GUESS = 1.0
HEADER = re.compile(r"reading (\d+) min · exercises (\d+) min · machine about (\d+) s")
FOLDED = re.compile(r"<details>.*?</details>", re.DOTALL)
FENCED = re.compile(r"```.*?```", re.DOTALL)


def reading_minutes(notebook: dict[str, Any]) -> int:
    """Minutes to read a notebook (as JSON), rounded; what is folded away is not counted."""
    words = code = looks = 0
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            words += len(re.findall(r"\w+", FENCED.sub("", FOLDED.sub("", source))))
        else:
            code += 1
            looks += "lab.predict(" in source or _has_picture(cell)
    return round(words / WORDS_A_MINUTE + CODE_CELL * code + FIGURE_OR_GUESS * looks)


def _has_picture(cell: dict[str, Any]) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell["outputs"])
