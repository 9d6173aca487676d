"""Colours and letters, the same in every figure of the course.

One colour per user. The first eight differ for colour-blind readers (after Okabe and Ito,
"Color Universal Design", 2008, darkened until white letters on them are easy to read), and
nothing is told by colour alone: rows and lines carry their names.
"""

from __future__ import annotations

import re
from functools import cache

from matplotlib import font_manager

USER_COLOURS = ("#0072B2", "#B8500A", "#00755E", "#A0457A", "#6A4C9C", "#7A6200", "#3B6E8F", "#8C2F2F")
INK = "#222222"
PAGE_INK = f"var(--jp-content-font-color1, {INK})"  # JupyterLab's, in its light and dark themes
FAINT = "#666666"
WAITING = "#CC79A7"
REFUSED = "#B00020"
PAPER = "white"
STEP = "#DDDDDD"  # behind what happens beside it

WIDTH = 8.0  # inches
LETTERS = 10.5  # points: 12.8 px when a figure of this width is shown 700 px wide
TITLE_LETTERS = 12.5
DOTS_PER_INCH = 120

CJK_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans JP",
    "Hiragino Sans",
    "Yu Gothic",
    "Meiryo",
    "IPAexGothic",
    "TakaoGothic",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "Arial Unicode MS",
)


def user_colour(user: str, place: int) -> str:
    """The colour of "user 3" is always the third; of other names, the one at their place in the figure."""
    numbered = re.fullmatch(r"\D*(\d+)", user)
    number = int(numbered.group(1)) - 1 if numbered else place
    return USER_COLOURS[number % len(USER_COLOURS)]


def pale(colour: str) -> str:
    """The colour, four fifths of it white."""
    channels = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(255 - (255 - one) / 5):02X}" for one in channels)


def letters(colour: str) -> str:
    """A colour for letters in HTML, drawn towards the page's own so that it reads on light and on dark."""
    return f"color-mix(in srgb, {colour} 60%, {PAGE_INK})"


@cache
def fonts() -> list[str]:
    """Font families to draw with, those this machine has: letters first, then Chinese and Japanese."""
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in CJK_FONTS if name in installed)]


@cache
def can_draw(character: str) -> bool:
    """Whether some installed font of ours has this character; without one, a box would be drawn."""
    return any(ord(character) in _characters_of(family) for family in fonts())


@cache
def _characters_of(family: str) -> frozenset[int]:
    path = font_manager.findfont(family)
    return frozenset(font_manager.get_font(path).get_charmap())


def drawable(text: str) -> str:
    """The text, with characters for which there is no font replaced by their number in Unicode."""
    return "".join(
        character if character.isspace() or can_draw(character) else f"U+{ord(character):04X}"
        for character in text
    )
