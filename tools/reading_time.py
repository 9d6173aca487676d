"""How long a lesson takes to read, by a rule, so that what its header promises can be checked.

150 words a minute for someone who reads English as a second language, half a minute for a code
cell, a minute for a figure or a guess.

    python tools/reading_time.py        for each lesson: by the rule, and as its header says
"""

from __future__ import annotations

import json
import re
from typing import Any

from servelab.lab.editions.lesson import lessons

WORDS_A_MINUTE = 150
CODE_CELL = 0.5
FIGURE_OR_GUESS = 1.0
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


def main() -> None:
    for lesson in lessons():
        found = reading_minutes(json.loads(lesson.path.read_text(encoding="utf-8")))
        print(f"{lesson.path.stem:<32} {found:>3} min   header: {lesson.reading} min")


if __name__ == "__main__":
    main()
