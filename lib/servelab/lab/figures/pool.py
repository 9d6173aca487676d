"""Loans of model pools over time: who waited in the one line, and who had which instance."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, lines_height, text_width, title
from servelab.machine import this_machine
from servelab.pool import Loan, LoanEnd, ModelPool

LANE = 0.18  # inches for one user who waits
BAR = 0.28  # inches for one instance
GAP = 0.1  # inches below each part
HEAD = 0.3  # inches for the name of one pool of several
MOST_LOANS = 60
IN_LINE = "waiting in line"
LEFT = {LoanEnd.TIMED_OUT: "timed out", LoanEnd.ABANDONED: "gave up", LoanEnd.CLOSED: "sent home"}

Loans = ModelPool[object] | Sequence[Loan]


def pool_timeline(loans: Loans | Mapping[str, Loans], *, says: str, until: float | None = None) -> Drawing:
    """Above, a thin line for each user while they wait; below, a row for each instance, a bar for each loan.

    A cross marks an instance that was replaced. Of many loans the first are drawn. Several pools, by name,
    stand below each other on one time axis, each with its mean time from joining the line to giving back.

    until: the end of the time axis in seconds, the same for figures that are compared.
    """
    named = loans if isinstance(loans, Mapping) else {"": loans}
    pools = [_Pool(one.loans() if isinstance(one, ModelPool) else one, name) for name, one in named.items()]
    span = max(one.end for one in pools) if until is None else until
    with course_style():
        names = [IN_LINE, *(f"instance {number}" for one in pools for number in one.numbers)]
        left, right = max(map(text_width, names)) + 0.3, 0.24
        if any(one.name for one in pools):
            right += max(text_width(line) for one in pools for line in one.mean.split("\n")) + 0.1
        inches = palette.WIDTH - left - right
        inch = span / inches
        tall = sum(one.tall for one in pools)
        top, below = 0.16 + lines_height(says), 0.72
        figure = Figure(figsize=(palette.WIDTH, tall + top + below), facecolor=palette.PAPER)
        height = figure.get_figheight()
        box = (left / palette.WIDTH, below / height, inches / palette.WIDTH, tall / height)
        axes = figure.add_axes(box, xlim=(0, span), ylim=(tall, 0))
        base, rows = 0.0, {}
        for one in pools:
            rows.update(one.draw(axes, base, inch))
            base += one.tall
        axes.set_yticks(list(rows), list(rows.values()))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"seconds{_legend(pools)}\nmeasured on {this_machine()}")
        title(figure, axes, says)
    words = " ".join(one.words("" if number else says) for number, one in enumerate(pools))
    return Drawing(figure, " ".join(words.split()))


class _Pool:
    """The loans of one pool with what is needed to place them. One vertical unit is an inch."""

    def __init__(self, loans: Sequence[Loan], name: str) -> None:
        self.name, self.count = name, len(loans)
        first = sorted(loans, key=lambda one: one.asked)[:MOST_LOANS]
        self.loans = [one for one in first if one.began is not None or one.end is not None]
        self.start = min((one.asked for one in self.loans), default=0.0)
        known = [time for one in self.loans for time in (one.asked, one.began, one.ended) if time is not None]
        self.end = max(max(known, default=0.0) - self.start, 1e-6)
        users = dict.fromkeys(one.user for one in self.loans)
        self.colours = {user: palette.user_colour(user, place) for place, user in enumerate(users)}
        self.numbers = sorted({one.instance for one in self.loans if one.instance is not None})
        self.lanes = _lanes(self.loans, 0.004 * self.end)
        line = LANE * (max(self.lanes.values(), default=-1) + 1)
        self.head = HEAD if name else 0.0
        self.line = line + GAP if line else 0.0
        self.tall = self.head + self.line + max(len(self.numbers), 1) * (BAR + GAP)
        took = [
            one.ended - one.asked for one in self.loans if one.began is not None and one.ended is not None
        ]
        mean = statistics.mean(took) if took else 0.0
        self.mean = f"done after\n{mean:.{1 if mean >= 1 else 2}f} s, on average" if took else ""

    def draw(self, axes: Axes, base: float, inch: float) -> dict[float, str]:
        """Draw everything below `base`; returns the names of its rows by their places."""
        rows = {}
        if self.name:
            axes.text(0, base + self.head - GAP, self.name, va="bottom", fontweight="bold")
            x, middle = axes.get_xlim()[1] + 0.12 * inch, base + (self.head + self.tall) / 2
            axes.text(x, middle, self.mean, va="center", linespacing=1.3)
        base += self.head
        if self.line:
            rows[base + (self.line - GAP) / 2] = IN_LINE
        for loan, lane in self.lanes.items():
            self._waiting(axes, loan, base + LANE * (lane + 0.5), inch)
        base += self.line
        places = {number: base + BAR / 2 + (BAR + GAP) * row for row, number in enumerate(self.numbers)}
        for loan in self.loans:
            if loan.instance is not None:
                self._loan(axes, loan, places[loan.instance], inch)
        return rows | {place: f"instance {number}" for number, place in places.items()}

    def _waiting(self, axes: Axes, loan: Loan, y: float, inch: float) -> None:
        """A line for a user who waits, with their name at its end; a bar ends it for who left without."""
        colour = self.colours[loan.user]
        asked = loan.asked - self.start
        until = loan.ended if loan.began is None else loan.began
        until = self.end if until is None else until - self.start
        axes.plot([asked, until], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt")
        words = loan.user
        if loan.began is None:
            axes.plot([until], [y], marker="|", color=colour, markersize=8, markeredgewidth=1.6)
            words += f": {LEFT[loan.end]}" if loan.end in LEFT else ""
        wide, away = (text_width(words) + 0.16) * inch, 0.08 * inch
        lane = self.lanes[loan]
        later = [
            one.asked - self.start
            for one, other in self.lanes.items()
            if other == lane and one.asked > loan.asked
        ]
        if until + wide < min([*later, axes.get_xlim()[1]]):
            axes.text(until + away, y, words, color=colour, va="center_baseline")
        elif loan.began is None:
            axes.text(asked - away, y, words, color=colour, ha="right", va="center_baseline")

    def _loan(self, axes: Axes, loan: Loan, y: float, inch: float) -> None:
        assert loan.began is not None
        began = loan.began - self.start
        ended = self.end if loan.ended is None else loan.ended - self.start
        wide = max(ended - began, 0.012 * inch)
        bar = Rectangle((began, y - BAR / 2), wide, BAR, facecolor=self.colours[loan.user], edgecolor="white")
        axes.add_patch(bar)
        name = _fitting(loan.user, wide / inch - 0.08)
        centre = began + wide / 2
        axes.text(centre, y, name, color="white", ha="center", va="center_baseline", clip_on=True)
        if loan.end is not None and loan.end.replaces:
            _cross(axes, began + wide, y)

    @property
    def replaced(self) -> int:
        return sum(one.end is not None and one.end.replaces for one in self.loans)

    def words(self, says: str) -> str:
        served = [one for one in self.loans if one.began is not None]
        longest = max((one.began - one.asked for one in served if one.began is not None), default=0.0)
        name, mean = (f"{self.name}: ", f" {self.mean.capitalize()}.") if self.name else ("", "")
        return (
            f"{name}{len(served)} loans of {len(self.numbers)} instances over {self.end:.3g} seconds "
            f"(measured). {says} Longest wait {longest:.3g} s; {self.replaced} replaced; "
            f"{len(self.loans) - len(served)} left the line without an instance.{mean}"
        )


def _lanes(loans: Sequence[Loan], shortest: float) -> dict[Loan, int]:
    """For each loan whose user waited visibly, which line is its own; one who leaves keeps it to the end."""
    free_at: list[float] = []
    lanes: dict[Loan, int] = {}
    for loan in loans:
        left = loan.began is None
        if loan.began is not None and loan.began - loan.asked <= shortest:
            continue
        free = [place for place, time in enumerate(free_at) if time <= loan.asked and not left]
        lanes[loan] = min(free, default=len(free_at))
        until = math.inf if loan.began is None else loan.began
        if free:
            free_at[lanes[loan]] = until
        else:
            free_at.append(until)
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


def _legend(pools: Sequence[_Pool]) -> str:
    crosses = "   ·   red cross: instance replaced" if any(one.replaced for one in pools) else ""
    drawn, every = sum(len(one.loans) for one in pools), sum(one.count for one in pools)
    return crosses + (f"   ·   {drawn} of {every} loans" if drawn < every else "")
