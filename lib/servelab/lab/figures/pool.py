"""Loans of a model pool over time: who had which instance, and who waited for one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width, title
from servelab.machine import this_machine
from servelab.pool import Loan, LoanEnd, ModelPool

ROW = 0.62  # inches for one instance
LANE = 0.16  # inches for the line of one user who waits
BAR = 0.34  # of a row's inches
MOST_LOANS = 60
LEFT = {LoanEnd.TIMED_OUT: "timed out", LoanEnd.ABANDONED: "gave up", LoanEnd.CLOSED: "sent home"}


def pool_timeline(loans: ModelPool[object] | Sequence[Loan], *, says: str) -> Drawing:
    """One row for each instance: a bar for each loan, and above it a thin line while its user waited.

    A cross marks an instance that was replaced. Users who left the line without one have a row below. Of
    many loans the first are drawn.
    """
    every = loans.loans() if isinstance(loans, ModelPool) else tuple(loans)
    shown = sorted(every, key=lambda one: one.asked)[:MOST_LOANS]
    shown = [one for one in shown if one.began is not None or one.end is not None]
    picture = _Picture(shown, len(every), says)
    with course_style():
        return picture.draw()


class _Picture:
    """The loans with what is needed to place them. One vertical unit is an inch."""

    def __init__(self, loans: list[Loan], count: int, says: str) -> None:
        self.loans = loans
        self.count = count
        self.says = says
        self.start = min((one.asked for one in loans), default=0.0)
        known = [time for one in loans for time in (one.asked, one.began, one.ended) if time is not None]
        self.end = max(known, default=self.start)
        self.end = max(self.end, self.start + 1e-6)
        users = dict.fromkeys(one.user for one in loans)
        self.colours = {user: palette.user_colour(user, place) for place, user in enumerate(users)}
        self.numbers = sorted({one.instance for one in loans if one.instance is not None})
        self.left = [one for one in loans if one.began is None]
        self.lanes = {number: _lanes(self.of_instance(number)) for number in self.numbers}

    def of_instance(self, number: int) -> list[Loan]:
        return [one for one in self.loans if one.instance == number]

    def draw(self) -> Drawing:
        heights = [BAR + 0.24 + LANE * max(self.lanes[number].values(), default=0) for number in self.numbers]
        gave_up = 0.2 + LANE * 1.6 * len(self.left) if self.left else 0.0
        tall = max(sum(heights) + gave_up, BAR)
        top, below = 0.16 + lines_height(self.says), 0.72
        figure = Figure(figsize=(palette.WIDTH, tall + top + below), facecolor=palette.PAPER)
        names = [f"instance {number}" for number in self.numbers] + (["left the line"] if self.left else [])
        room = (max(map(text_width, names), default=0.0) + 0.3) / palette.WIDTH
        height = figure.get_figheight()
        axes = figure.add_axes((room, below / height, 0.97 - room, tall / height))
        span = self.end - self.start
        axes.set(xlim=(0, span * 1.01), ylim=(tall, 0))
        inches = palette.WIDTH * (0.97 - room) / (span * 1.01)
        base, places = 0.0, []
        for number, row in zip(self.numbers, heights, strict=True):
            base += row
            places.append(base - BAR / 2 - 0.08)
            self._row(axes, number, base - 0.08, inches)
        for place, loan in enumerate(self.left):
            self._leaver(axes, loan, base + 0.2 + LANE * 1.6 * place, inches)
        if self.left:
            places.append(base + 0.2 + LANE * 1.6 * (len(self.left) - 1) / 2)
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"seconds   ·   {_legend(self.loans)}{self._window()}\nmeasured on {this_machine()}")
        title(figure, axes, self.says)
        return Drawing(figure, self._words())

    def _row(self, axes: Axes, number: int, base: float, inches: float) -> None:
        for loan in self.of_instance(number):
            assert loan.began is not None
            colour = self.colours[loan.user]
            began, asked = loan.began - self.start, loan.asked - self.start
            ended = (self.end if loan.ended is None else loan.ended) - self.start
            wide = max(ended - began, 0.012 / inches)
            axes.add_patch(Rectangle((began, base - BAR), wide, BAR, facecolor=colour, edgecolor="white"))
            lane = self.lanes[number].get(loan, 0)
            if lane:
                y = base - BAR - LANE * (lane - 0.35)
                axes.plot([asked, began], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
                axes.plot([began, began], [y, base - BAR], color=colour, linewidth=1.0)
            axes.text(
                began + wide / 2,
                base - BAR / 2,
                _fitting(loan.user, wide * inches - 0.08),
                color="white",
                ha="center",
                va="center_baseline",
            )
            if loan.end is not None and loan.end.replaces:
                _cross(axes, began + wide, base - BAR / 2)

    def _leaver(self, axes: Axes, loan: Loan, y: float, inches: float) -> None:
        """Somebody who waited and got nothing."""
        colour = self.colours[loan.user]
        asked, ended = loan.asked - self.start, (loan.ended or self.end) - self.start
        axes.plot([asked, ended], [y, y], color=colour, linewidth=1.6)
        axes.plot([ended], [y], marker="|", color=colour, markersize=8, markeredgewidth=1.6)
        words = f"{loan.user}: {LEFT[loan.end]}" if loan.end in LEFT else loan.user
        room = (self.end - self.start - ended) * inches
        to_the_right = room > text_width(words) + 0.15
        away = 0.08 / inches
        axes.text(
            ended + away if to_the_right else asked - away,
            y,
            words,
            color=colour,
            ha="left" if to_the_right else "right",
            va="center_baseline",
        )

    def _window(self) -> str:
        return f"   ·   {len(self.loans)} of {self.count} loans" if len(self.loans) < self.count else ""

    def _words(self) -> str:
        served = [one for one in self.loans if one.began is not None]
        longest = max((one.began - one.asked for one in served if one.began is not None), default=0.0)
        replaced = sum(one.end is not None and one.end.replaces for one in served)
        return (
            f"{len(served)} loans of {len(self.numbers)} instances over {self.end - self.start:.3g} seconds "
            f"(measured). {self.says} Longest wait {longest:.3g} s; {replaced} replaced; "
            f"{len(self.left)} left the line without an instance."
        )


def _lanes(loans: list[Loan]) -> dict[Loan, int]:
    """For each loan whose user waited visibly, which line above the bars is its own, counted from 1."""
    free_at: list[float] = []
    lanes: dict[Loan, int] = {}
    span = max((one.ended or one.asked for one in loans), default=0.0) - min(
        (one.asked for one in loans), default=0.0
    )
    for loan in sorted(loans, key=lambda one: one.asked):
        if loan.began is None or loan.began - loan.asked <= 0.004 * span:
            continue
        for place, free in enumerate(free_at):
            if free <= loan.asked:
                free_at[place] = loan.began
                lanes[loan] = place + 1
                break
        else:
            free_at.append(loan.began)
            lanes[loan] = len(free_at)
    return lanes


def _fitting(user: str, inches: float) -> str:
    """The name, or only its number, or nothing."""
    number = re.search(r"\d*$", user)
    names = (user, number[0] if number is not None else "")
    return next((name for name in names if text_width(name) <= inches), "")


def _cross(axes: Axes, x: float, y: float) -> None:
    axes.plot(
        [x], [y], "X", color=palette.REFUSED, markersize=11, markeredgecolor="white", zorder=5, clip_on=False
    )


def _legend(loans: Sequence[Loan]) -> str:
    crosses = any(one.end is not None and one.end.replaces for one in loans)
    return "thin line: waiting" + ("   ·   red cross: instance replaced" if crosses else "")
