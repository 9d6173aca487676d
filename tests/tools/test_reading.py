"""A lesson for readers: a folder for each cell, in order, with everything that is seen and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import reading


def test_every_cell_of_a_lesson_is_there_with_what_a_reader_sees(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "02"
    assert reading.main(["02", str(folder)]) == 0
    cells = sorted(folder.iterdir())
    assert f"{len(cells)} cells of 02_queue_and_concurrency_limit" in capsys.readouterr().out
    assert (cells[0] / "text.md").read_text(encoding="utf-8").startswith("# The queue")
    code = [cell for cell in cells if (cell / "code.py").exists()]
    assert sum((cell / "output.txt").exists() for cell in code) > len(code) / 2
    pictures = list(folder.glob("*/picture-1.png"))
    assert len(pictures) >= 5
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize(
    ("arguments", "said"), [([], "by its number, as in"), (["99"], "Name one of these lessons by its number")]
)
def test_what_cannot_be_done_is_said_in_a_sentence(arguments: list[str], said: str, capsys) -> None:
    assert reading.main(arguments) == 1
    assert said in capsys.readouterr().err


def test_an_old_reading_is_not_written_over(tmp_path: Path, capsys) -> None:
    assert reading.main(["02", str(tmp_path)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
