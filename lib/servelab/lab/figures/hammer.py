"""What came of hammering a model: every call of every thread, and which got something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from servelab.lab.figures import palette
from servelab.lab.figures.drawing import Drawing, course_style, cut_to, lines_height, title
from servelab.thread_safety.hammering import Call, HammerReport, Outcome, StateDifference

MOST_CALLS = 48  # more would be too narrow to tell apart
BEFORE = 0.2  # of those, how many come before the first that is wrong
ROW = 0.42  # inches

# Face, hatch and the colour of the hatch: told apart in black and white, too.
LOOKS = {
    Outcome.EQUAL: (palette.USER_COLOURS[0], "", palette.PAPER),
    Outcome.WITHIN: ("#9CC4DC", "...", palette.INK),
    Outcome.DIFFERENT: ("#F2B8A0", "xxxx", palette.REFUSED),
    Outcome.RAISED: (palette.INK, "", palette.PAPER),
}
NAMES = {
    Outcome.EQUAL: "the same",
    Outcome.WITHIN: "rounded differently",
    Outcome.DIFFERENT: "different",
    Outcome.RAISED: "an error",
}
BLOCK = "each block: one call, compared with what one thread alone gets"


def hammered(report: HammerReport, *, says: str = "") -> Drawing:
    """A row for each thread, time across, a cell for each call in the look of its outcome.

    Of many calls, those around the first one that is wrong.
    """
    says = says or _default_title(report)
    shown = _shown(report)
    with course_style():
        below = 0.78 if len(shown) == len(report.calls) else 0.98
        height = 0.9 + below + ROW * report.threads + lines_height(says)
        figure = Figure(figsize=(palette.WIDTH, height), facecolor=palette.PAPER)
        axes = figure.add_axes((0.11, below / height, 0.86, ROW * report.threads / height))
        began = min(call.began for call in shown)
        for call in shown:
            _cell(axes, call, began)
        axes.set_xlim(0, max(1e3 * (call.ended - began) for call in shown))
        axes.set_ylim(report.threads - 0.5, -0.5)
        axes.set_yticks(range(report.threads), [f"thread {thread}" for thread in range(report.threads)])
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(_evidence(report, shown))
        _legend(axes, shown)
        if report.changed_state:
            left = cut_to(_left_behind(report.changed_state[0]), 0.86 * palette.WIDTH)
            figure.text(0.11, 0.1 / height, left, va="bottom")
        title(figure, axes, says)
    return Drawing(figure, _words(report, says))


def _shown(report: HammerReport) -> list[Call]:
    calls = sorted(report.calls, key=lambda call: call.began)
    wrong = (place for place, call in enumerate(calls) if call.outcome in (Outcome.DIFFERENT, Outcome.RAISED))
    start = max(0, min(next(wrong, 0) - int(MOST_CALLS * BEFORE), len(calls) - MOST_CALLS))
    return calls[start : start + MOST_CALLS]


def _cell(axes: Axes, call: Call, began: float) -> None:
    face, hatch, line = LOOKS[call.outcome]
    start, length = 1e3 * (call.began - began), 1e3 * (call.ended - call.began)
    axes.barh(
        call.thread, length, left=start, height=0.7, color=face, hatch=hatch, edgecolor=line, linewidth=0
    )
    axes.plot([start, start], [call.thread - 0.35, call.thread + 0.35], color=palette.PAPER, linewidth=0.7)
    if call.outcome is Outcome.RAISED:
        axes.text(start + length / 2, call.thread, "!", color="white", ha="center", va="center", clip_on=True)


def _legend(axes: Axes, shown: Sequence[Call]) -> None:
    """Of the calls that are drawn, so that they can be counted."""
    drawn = Counter(call.outcome for call in shown)
    patches = [
        Patch(
            facecolor=LOOKS[one][0],
            hatch=LOOKS[one][1],
            edgecolor=LOOKS[one][2],
            linewidth=0,
            label=f"{drawn[one]} {NAMES[one]}",
        )
        for one in sorted(drawn, key=[*Outcome].index)
    ]
    axes.set_title(BLOCK, pad=25)
    axes.legend(
        handles=patches,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        frameon=False,
        ncols=4,
        borderaxespad=0.3,
        columnspacing=1.2,
        handlelength=1.6,
    )


def _evidence(report: HammerReport, shown: Sequence[Call]) -> str:
    total, wrong = len(report.calls), report.different + report.raised
    what = f"milliseconds   ·   {report.torch_threads} torch thread in each   ·   measured"
    if len(shown) == total:
        return what
    return f"{what}\n{len(shown)} of {total:,} calls are drawn; of all, {wrong:,} are different or an error"


def _left_behind(state: StateDifference) -> str:
    threaded, alone = (
        f"{one:.4g}" if isinstance(one, float) else one for one in (state.threaded, state.serial)
    )
    return f"left behind in the model: {state.path} is {threaded}, after one thread alone {alone}"


def _default_title(report: HammerReport) -> str:
    wrong, total = report.different + report.raised, len(report.calls)
    if wrong and not report.repeatable:
        return (
            f"{wrong:,} of {total:,} calls do not get what they got before; not even one thread repeats it."
        )
    if wrong:
        return f"{wrong:,} of {total:,} calls do not get what one thread alone gets."
    if report.changed_state:
        return f"All {total:,} answers are as they should be, but the model is left in another state."
    return f"All {total:,} calls get what one thread alone gets. That does not prove safety."


def _words(report: HammerReport, says: str) -> str:
    what = f"The calls of {report.threads} threads over time (measured)."
    counts = ", ".join(f"{report.count(one):,} {NAMES[one]}" for one in Outcome)
    first = f" The first: {report.first_difference}." if report.first_difference else ""
    left = "".join(f" Left behind: {one}." for one in report.changed_state[:3])
    return f"{what} {says} Of the calls: {counts}.{first}{left}"
