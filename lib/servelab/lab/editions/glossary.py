"""Words that lessons define, each with the sentence that does it. A defined word is bold, and short."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from servelab.lab.editions.lesson import FOLDED, Lesson, source

WORD = re.compile(r"\*\*([A-Za-z][\w'-]*(?: [\w'-]+){0,2})\*\*")  # three words at most: longer is a sentence
ENDS = re.compile(r"(?:(?<=[.?!])|(?<=[.?!]\))|(?<=[.?!]\*\*))\s+(?=[A-Z*(`])")
POINTS_BACK = re.compile(r"(That|This|It|Keep|For that)\b")
SHORT = 8  # words: a sentence of fewer says little alone

HEAD = """# Words

Each word with the sentence of the lesson that defines it.

| Word | | Lesson |
|---|---|---|"""


def glossary(everything: Sequence[Lesson]) -> str:
    """All words by the alphabet, as markdown; where two lessons define one, the first is meant."""
    rows: dict[str, str] = {}
    for lesson in everything:
        for word, said in definitions(lesson):
            link = f"[{lesson.number}]({lesson.path.stem}.html)"
            rows.setdefault(word.lower().removesuffix("s"), f"| {word} | {said} | {link} |")
    return "\n".join([HEAD, *(rows[word] for word in sorted(rows))])


def definitions(lesson: Lesson) -> Iterator[tuple[str, str]]:
    """Every word in bold of a lesson's text, with its sentence, and with those around it if it is short."""
    for cell in json.loads(lesson.path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "markdown":
            continue
        text = FOLDED.sub("", source(cell)).partition("## To keep")[0]
        for part in re.split(r"\n\n|\n- |\n\d\. ", text):
            sentences = ENDS.split(" ".join(part.removeprefix("- ").split()))
            for place, sentence in enumerate(sentences):
                short = len(sentence.split()) < SHORT
                first = place - bool(place and (short or POINTS_BACK.match(sentence)))
                said = " ".join(sentences[first : place + 1 + short]).replace("|", "&#124;")
                yield from ((found[1], said) for found in WORD.finditer(sentence))
