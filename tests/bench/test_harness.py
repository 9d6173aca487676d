"""How a measured figure is printed and saved."""

import json
from collections.abc import Iterator

from servelab.bench.harness import Measurement, report


def a_step() -> Iterator[Measurement]:
    yield Measurement("a step", "ms", (21.0, 20.0, 29.0), "at most 25")


def tokens() -> Iterator[Measurement]:
    yield Measurement("tokens", "tokens/s", (883_000.0,), beside={"memory, MB": 538.4})


def test_a_figure_is_a_median_with_its_spread_its_goal_and_its_machine(tmp_path, capsys) -> None:
    output = tmp_path / "found.json"
    assert report("a title", [a_step, tokens], output) == 0
    printed = capsys.readouterr()
    title, machine, versions, _, step, speed, beside = printed.out.splitlines()
    assert "measuring a step" in printed.err  # which part is measured now
    assert title == "a title"
    assert "cores" in machine
    assert "python 3." in versions
    assert " ".join(step.split()) == "a step 21 ms (20 to 29, 3 runs) goal: at most 25"
    assert " ".join(speed.split()) == "tokens 883,000 tokens/s (883,000 to 883,000, 1 runs)"
    assert beside.strip() == "memory, MB 538"
    saved = json.loads(output.read_text())
    assert [(one["name"], one["median"]) for one in saved["measurements"]] == [
        ("a step", 21),
        ("tokens", 883_000),
    ]
    assert set(saved) == {"machine", "versions", "measurements"}
