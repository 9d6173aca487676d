"""`servelab demo`: three users and two places, each user's text growing in a row of its own.

In a terminal the rows are redrawn as tokens come; into a pipe only the outcome is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from servelab.clock import WallClock
from servelab.drivers import run as drive
from servelab.engine import Engine
from servelab.lab.figures import interleaving_timeline
from servelab.lab.figures.palette import user_colour
from servelab.metrics import request_metrics
from servelab.model import TokenModel
from servelab.policies import Interleaved
from servelab.request import Request, RequestState, SamplingParams
from servelab.scripted import ScriptedModel
from servelab.trace import Trace, check_trace
from servelab.workloads import Arrival, Workload

LIMIT = 2
PROMPTS = (
    "What is a queue? Answer in one sentence.",
    "Why do trains wait at signals?",
    "Name three colours and one use of each.",
)
ARRIVAL_OF_THE_THIRD = 0.3  # seconds: the first two are in the middle of their answers


def run(*, scripted: bool, tokens: int, folder: Path) -> int:
    """Play the demo, check its trace, save trace and figure into `folder`."""
    if tokens < 1:
        print(f"servelab: --tokens is {tokens}: use 1 or more.", file=sys.stderr)
        return 2
    console = Console(highlight=False)
    model = _model(scripted, console)
    trace = play(model, tokens, console)
    check_trace(trace)
    folder.mkdir(parents=True, exist_ok=True)
    trace.save(folder / "trace.jsonl")
    figure = interleaving_timeline(
        trace,
        start=_before_the_third(trace),
        says="Two may generate at a time, one token each in turn.\nUser 3 waits until one of them is done.",
    )
    figure.save(folder / "timeline.png")
    _print_outcome(trace, console)
    console.print(f"Saved {folder / 'trace.jsonl'} and {folder / 'timeline.png'}.")
    return 0


def _model(scripted: bool, console: Console) -> TokenModel:
    if scripted:
        return ScriptedModel.round_robin(time_per_token=0.0)
    from servelab.models.causal_lm import CausalLM

    console.print("Loading SmolLM2-135M-Instruct …")
    return CausalLM.load(slots=LIMIT, context_length=256, progress=console.is_terminal)


def workload(tokens: int, *, scripted: bool) -> Workload:
    """Three users; the second asks for less, so that the third has a place to wait for."""
    limits = (tokens, max(1, tokens // 2), tokens)
    times = (0.0, 0.0, 0.0 if scripted else ARRIVAL_OF_THE_THIRD)
    return Workload(
        tuple(
            Arrival(time, prompt, SamplingParams(max_new_tokens=limit), user=f"user {number}")
            for number, (time, prompt, limit) in enumerate(zip(times, PROMPTS, limits, strict=True), start=1)
        )
    )


def play(model: TokenModel, tokens: int, console: Console) -> Trace:
    """Run the three users on the wall clock, redrawing after every step."""
    engine = Engine(model, Interleaved(LIMIT), max_queue_size=5, clock=WallClock())
    seen: dict[str, Request] = {}
    arrivals = workload(tokens, scripted=not model.real)

    def notice(request: Request) -> None:
        seen[request.user] = request

    if not console.is_terminal:
        drive(engine, arrivals, on_arrival=notice)
        _print_answers(seen, console)
        return engine.trace
    with Live(console=console, refresh_per_second=30, transient=False) as live:

        def redraw(engine: Engine) -> None:
            live.update(screen(engine, seen))

        drive(engine, arrivals, on_arrival=notice, on_step=redraw)
    return engine.trace


def screen(engine: Engine, seen: dict[str, Request]) -> Group:
    """A row for each user, and both queues under them."""
    rows = Table.grid(padding=(0, 2), expand=True)
    rows.add_column(no_wrap=True)
    rows.add_column(no_wrap=True)
    rows.add_column(ratio=1)
    for place, (user, request) in enumerate(sorted(seen.items())):
        style = f"bold {user_colour(user, place)}"
        rows.add_row(Text(user, style=style), _state(request), Text(request.text, style=style))
    running = ", ".join(request.user for request in engine.running) or "–"
    waiting = ", ".join(request.user for request in engine.waiting) or "–"
    queues = f"processing queue (limit {LIMIT}): {running}    request queue: {waiting}"
    return Group(Panel(rows, title="Three users, one model"), Text(queues))


def _state(request: Request) -> Text:
    match request.state:
        case RequestState.WAITING:
            return Text("waits", style="magenta")
        case RequestState.RUNNING:
            return Text("generates")
        case _:
            return Text("done")


def _before_the_third(trace: Trace) -> int:
    """A step some turns before the third user's first one, so that the figure shows the change-over."""
    third = next(one for one in request_metrics(trace) if one.user == "user 3")
    return max(0, third.token_steps[0] - 5) if third.token_steps else 0


def _print_answers(seen: dict[str, Request], console: Console) -> None:
    for user, request in sorted(seen.items()):
        console.print(f"{user}: {request.text}", markup=False, soft_wrap=True)


def _print_outcome(trace: Trace, console: Console) -> None:
    for one in request_metrics(trace):
        console.print(
            f"{one.user}: waited {one.queue_wait or 0:.2f} s, first token after {one.ttft or 0:.2f} s, "
            f"{len(one.token_times)} tokens in {one.e2e or 0:.2f} s ({trace.header.evidence.value})",
            soft_wrap=True,
        )
