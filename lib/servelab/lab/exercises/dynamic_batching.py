"""The exercises of the lesson on dynamic batching."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from servelab.batching import Batch, Reason, p95, random_arrivals, simulate_batches
from servelab.lab.exercises.form import (
    NotStarted,
    NotYet,
    check_each,
    exercise,
    exercise_alone,
    whole_number,
)
from servelab.lab.figures import Drawing, batch_timeline

MOST, WAIT = 4, 100  # items in a batch, and milliseconds that the oldest one waits at most

# Exercise 1: what is wrong in each service, and where it is to be seen.
WRONG = {"waits_too_long": "A", "neighbours_fail": "B", "at_once": "C", "too_large": "D"}

# Exercise 2: moments that are asked first, since they are easy to follow: who came when, now, was it busy?
EASY = (
    *[([0], 0, False), ([0], 99, False), ([0], 100, False), ([0, 90], 110, False), ([0] * 4, 0, False)],
    *[([0] * 6, 10, False), ([20], 30, True), ([0] * 5, 40, True), ([500, 590, 599], 600, False)],
)
MOMENTS = 500

# Exercise 3: a promise, and the loads at which it is to be kept.
PROMISE, RATES, ITEMS = 60, (30, 150, 500), 3000


# -- exercise 1: four timelines -------------------------------------------------------------------------


def services() -> Drawing:
    """Five services with max_batch_size=4 and max_wait_time=0.1; four have a defect."""
    return batch_timeline(made_up(), says="What is wrong in four of these services?", evidence="made up")


def made_up() -> dict[str, list[Batch]]:
    four, full, waited = (0.0, 0.01, 0.02, 0.03), Reason.FULL, Reason.WAITED
    return {
        "A": [_batch((0.0, 0.08, 0.15), 0.25, waited), _batch((0.27, 0.28, 0.29, 0.3), 0.31, full, first=4)],
        "B": [_batch(four, 0.03, full, failed=(1, 2, 3, 4)), _batch((0.2, 0.23), 0.3, waited, first=5)],
        "C": [
            _batch(four, 0.03, full),
            _batch((0.035, 0.04, 0.045, 0.05), 0.05, full, first=5, worker=2),
            _batch((0.2,), 0.3, waited, first=9),
        ],
        "D": [_batch((*four, 0.03), 0.03, full), _batch((0.16, 0.2), 0.26, waited, first=6)],
        "E": [
            _batch((0.0, 0.04, 0.08), 0.1, waited),
            _batch((0.105, 0.11, 0.115, 0.12), 0.16, full, first=4),
            _batch((0.125, 0.15), 0.23, waited, first=8),
        ],
    }


def shown_seconds(items: int) -> float:
    return 0.03 + 0.01 * items


def _batch(
    came: tuple[float, ...],
    began: float,
    reason: Reason,
    *,
    first: int = 1,
    worker: int = 1,
    failed: tuple[int, ...] = (),
) -> Batch:
    items = tuple(range(first, first + len(came)))
    return Batch(worker, items, came, began, began + shown_seconds(len(came)), reason, failed=failed)


@exercise
def check_defects(
    waits_too_long: str | None, neighbours_fail: str | None, at_once: str | None, too_large: str | None
) -> str:
    """The letter of the service that has each defect."""
    given = dict(zip(WRONG, (waits_too_long, neighbours_fail, at_once, too_large), strict=True))
    if None in given.values():
        raise NotStarted("Write a letter in place of each None.")
    hints = {
        "waits_too_long": "measure each line from its dot to where its batch begins, beside an idle model.",
        "neighbours_fail": "a cross is an item that failed.",
        "at_once": "look for two bars at the same moment.",
        "too_large": "the number in a bar is that of its items.",
    }
    check_each(given, WRONG, hints)
    return (
        "A counts the wait from the newest item, B fails four for one, C has two calls at once, D takes 5. "
        "In E the last two wait longer than 0.1 s, too, but for a model that is busy."
    )


# -- exercise 2: the rule -------------------------------------------------------------------------------


def right_number(came: list[int], now: int, was_busy: bool) -> int:
    """The rule that is asked for."""
    due = len(came) >= MOST or now >= came[0] + WAIT or was_busy
    return min(len(came), MOST) if due else 0


@exercise_alone
def check_rule(how_many: Callable[[list[int], int, bool], int]) -> str:
    """Whether `how_many` says of any line of items how many of them go now."""
    draw = Random(0)
    if [how_many(list(came), now, was_busy) for came, now, was_busy in EASY] == [len(one[0]) for one in EASY]:
        raise NotStarted("It lets everybody go at once: one alone before its time, and six in a batch.")
    for came, now, was_busy in [*EASY, *(_moment(draw) for _ in range(MOMENTS))]:
        number, right = how_many(list(came), now, was_busy), right_number(came, now, was_busy)
        if whole_number(number or 0) != right:  # `due and number` gives False for nobody
            raise NotYet(_said(came, now, was_busy, number, right))
    return f"Right at {MOMENTS} moments, among them leftovers, late items and more than fit into a batch."


def _moment(draw: Random) -> tuple[list[int], int, bool]:
    """A line as it can be while the model is idle: everybody in it has come by now."""
    now = draw.randrange(200, 400)
    count = draw.choice([1, 1, 2, 3, 3, 4, 5, 9])
    return sorted(now - draw.randrange(0, 130) for _ in range(count)), now, draw.random() < 0.3


def _said(came: list[int], now: int, was_busy: bool, number: object, right: int) -> str:
    why = {True: "the model has just been busy", False: f"the oldest has waited {now - came[0]} ms"}
    goes = f"{right} go" if right else "nobody goes yet"
    return (
        f"how_many({came}, now={now}, was_busy={was_busy}) gave {number}. {len(came)} wait, and "
        f"{why[was_busy]}: {goes}."
    )


# -- exercise 3: a wait for a promise -------------------------------------------------------------------


def seconds(items: int) -> float:
    """How long the model of the exercise takes for so many items."""
    return 0.006 + 0.001 * items


def simulated(max_wait_ms: float, a_second: float) -> tuple[Batch, ...]:
    """The batches of 3,000 users who come at random."""
    return simulate_batches(random_arrivals(a_second, ITEMS, seed=7), seconds, 32, max_wait_ms / 1000)


def p95_with(max_wait_ms: float, a_second: float) -> float:
    """Milliseconds within which 95 of 100 users have their results."""
    return p95(simulated(max_wait_ms, a_second))


@exercise
def check_wait(wait: int | None, limited_by: int | None) -> str:
    """The longest wait, of 0, 5, 10 … ms, that keeps the promise at each rate; the rate that forbids more."""
    if wait is None or limited_by is None:
        raise NotStarted("Write a number in place of each None.")
    given = whole_number(wait)
    if given < 0 or given % 5:
        raise NotYet(f"wait = {given}: try 0, 5, 10, 15 … milliseconds.")
    found = {rate: p95_with(given, rate) for rate in RATES}
    worst = max(RATES, key=lambda rate: found[rate])
    if found[worst] > PROMISE:
        raise NotYet(f"With {given} ms, 95 of 100 need up to {found[worst]:.0f} ms at one of the rates.")
    longer = {rate: p95_with(given + 5, rate) for rate in RATES}
    if max(longer.values()) <= PROMISE:
        raise NotYet(f"{given} ms keeps the promise, and so does a longer wait, which needs fewer calls.")
    breaks = max(RATES, key=lambda rate: longer[rate])
    if whole_number(limited_by) != breaks:
        raise NotYet(f"The wait is right. With {given + 5} ms, at which rate is the promise broken?")
    return (
        f"{given} ms: within {found[breaks]:.0f} ms at {breaks} a second; with 5 more {longer[breaks]:.0f}. "
        "There a wait ends in a long batch, and who comes during one waits for it as well."
    )
