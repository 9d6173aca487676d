"""The player: its columns say what the trace says, its bundle can be read without a kernel, and it
works in a browser, by keyboard, with hostile text.

What is so at a moment is computed by the JavaScript itself, under node, and compared with the
trace replayed here; both are left out, saying so, on a machine without node or Chromium.
"""

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from scenarios import Scenario, World, scenarios

from servelab import Continuous, Interleaved, ScriptedModel, StaticBatch, poisson, simulate, users
from servelab.lab.figures import palette
from servelab.lab.player import Player, player, player_html
from servelab.lab.player.packing import packed
from servelab.lab.player.player import player_data, script, style
from servelab.models.kv.blocks import Blocks
from servelab.scripted import utf8_bytes
from servelab.trace import Accepted, Admitted, Event, Finished, Preempted, Refused, Stepped, Trace
from servelab.trace.lifecycles import lifecycles, queue_lengths

NODE = shutil.which("node")
CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "</script><script>document.title = 'taken over'</script><img src=x onerror='document.title=1'>"

needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed; browsers run the same functions")


def three_users() -> Trace:
    workload = users(["What is a queue?", "Why?", "Name three."], at=[0, 0, 3], max_new_tokens=[5, 3, 4])
    return simulate(workload, Interleaved(2), ScriptedModel.round_robin(time_per_token=1.0))


def crowd(policy: StaticBatch | Continuous) -> Trace:
    return simulate(poisson(6, 30, seed=2, new_tokens=(8, 40)), policy, max_queue_size=5)


# The columns and the functions over them


def in_javascript(trace: Trace, expression: str, times: list[float]) -> list[Any]:
    """The value of an expression over `trace` and `time`, for each time."""
    program = f"""{script()}
        const {{ packed, times }} = JSON.parse((await import("node:fs")).readFileSync(0, "utf8"));
        const trace = await unpack(packed);
        const answer = (time) => {{
            const state = stateAt(trace, time);
            return {expression};
        }};
        console.log(JSON.stringify(times.map(answer)));"""
    data = json.dumps({"packed": packed(trace), "times": times})
    command = [str(NODE), "--input-type=module", "--eval", program]
    done = subprocess.run(command, input=data, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    answers: list[Any] = json.loads(done.stdout)
    return answers


STATE = """{
    waiting: state.waiting, running: state.running, step: state.step, stepsDone: state.stepsDone,
    standing: trace.users.map((_, request) => standing(trace, request, time)),
    tokens: trace.users.map((_, request) => tokensAt(trace, request, state.stepsDone)),
    texts: trace.users.map((_, request) => newestText(trace, request, state.stepsDone, 1000)),
    holders: Array.from(blocksAt(trace, state).holders),
}"""


def replayed(trace: Trace, time: float) -> dict[str, Any]:
    """The same from the events, one after the other."""
    live: dict[str, int] = {}
    waiting: list[int] = []
    running: list[int] = []
    standing: list[str] = []
    texts: list[list[str]] = []
    first_admitted: list[int] = []
    memory = BlocksHeld(trace)
    steps = list(trace.of_kind(Stepped))
    for event in trace.events:
        memory.follow(event, time)
        match event:
            case Accepted() | Refused():
                there = event.time <= time
                is_refused = isinstance(event, Refused)
                standing.append(("refused" if is_refused else "waiting") if there else "later")
                texts.append([])
                if not is_refused:
                    live[event.request] = len(standing) - 1
                    waiting += [live[event.request]] if there else []
            case Admitted() if event.time <= time:
                number = live[event.request]
                waiting.remove(number)
                running.append(number)
                standing[number] = "running"
                first_admitted += [number] if number not in first_admitted else []
            case Preempted() if event.time <= time:
                number = live[event.request]
                running.remove(number)
                waiting.append(number)
                standing[number] = "waiting"
            case Finished() if event.time <= time:
                number = live.pop(event.request)
                (waiting if number in waiting else running).remove(number)
                standing[number] = "ended"
            case Stepped() if event.time <= time:
                for name, token in zip(event.requests, event.tokens, strict=True):
                    if token is not None:
                        texts[live[name]].append(trace.pieces[token])
    done = sum(step.time <= time for step in steps)
    computes = done < len(steps) and steps[done].started <= time
    return {
        "waiting": sorted(waiting),
        "running": sorted(running, key=first_admitted.index),
        "step": done if computes else -1,
        "stepsDone": done,
        "standing": standing,
        "tokens": [len(pieces) for pieces in texts],
        "texts": ["".join(pieces) for pieces in texts],
        "holders": [memory.holders[block] for block in range(trace.header.kv_blocks)],
    }


class BlocksHeld:
    """How many hold each block, from the events up to a moment."""

    def __init__(self, trace: Trace) -> None:
        self.size = trace.header.block_size
        self.holders: Counter[int] = Counter()
        self.tables: dict[str, list[int]] = {}
        self.tokens: dict[str, int] = {}

    def follow(self, event: Event, until: float) -> None:
        if (event.started if isinstance(event, Stepped) else event.time) > until:
            return
        match event:
            case Admitted():
                self.tables[event.request], self.tokens[event.request] = list(event.blocks), event.cached
                self.holders.update(event.blocks)
            case Stepped():
                blocks = list(event.blocks)
                for name, computed in zip(event.requests, event.computed, strict=True):
                    self.tokens[name] += computed
                    while blocks and len(self.tables[name]) * self.size < self.tokens[name]:
                        self.tables[name].append(blocks.pop(0))
                self.holders.update(event.blocks)
            case Preempted() | Finished():
                self.holders.subtract(self.tables.pop(event.request, []))


@needs_node
@given(scenarios)
@settings(max_examples=25)
def test_at_every_moment_the_columns_say_what_the_events_say(scenario: Scenario) -> None:
    trace = World(scenario).trace
    steps = list(trace.of_kind(Stepped))
    moments = {event.time for event in trace.events} | {step.started for step in steps}
    between = {(step.started + step.time) / 2 for step in steps}
    times = sorted(moments | between | {0.0, trace.duration + 1})
    states = in_javascript(trace, STATE, times)
    for time, state in zip(times, states, strict=True):
        assert state == replayed(trace, time), time
    counts = {
        time: (len(state["waiting"]), len(state["running"]))
        for time, state in zip(times, states, strict=True)
    }
    assert all(counts[one.time] == (one.waiting, one.running) for one in queue_lengths(lifecycles(trace)))


@needs_node
def test_stepping_forward_visits_the_end_of_every_step_and_back_again() -> None:
    trace = three_users()
    ends = [step.time for step in trace.of_kind(Stepped)]
    forward = in_javascript(trace, "nextStop(trace, time)", [0.0, *ends])
    assert forward == [*ends, trace.duration]
    backward = in_javascript(trace, "previousStop(trace, time)", ends)
    assert backward == [0.0, *ends[:-1]]


@needs_node
def test_the_window_holds_the_place_for_every_width() -> None:
    trace = three_users()
    for columns in (3, 4, 9, 24):
        each_step = f"Array.from({{ length: 99 }}, (_, step) => windowStart(step + 1, {columns}))"
        [starts] = in_javascript(trace, each_step, [0.0])
        assert all(start <= step < start + columns for step, start in enumerate(starts))
        assert starts == sorted(starts)


@needs_node
def test_what_happened_is_said_in_words() -> None:
    trace = three_users()
    first, second = (step.time for step in list(trace.of_kind(Stepped))[:2])
    said = in_javascript(trace, f"happened(trace, {first}, time)", [second])[0]
    assert said == ["model step 1: user 2 receives “Taking”"]
    whole = in_javascript(trace, "happened(trace, -1, time)", [trace.duration])[0]
    assert "user 3 enters the processing queue" in whole
    assert "user 3 ends: length" in whole


@needs_node
def test_half_characters_are_named_and_the_text_has_whole_ones_only() -> None:
    trace = simulate(users(["日本"], max_new_tokens=4), Interleaved(1), ScriptedModel.echo(split=utf8_bytes))
    ends = [step.time for step in trace.of_kind(Stepped)]
    texts = in_javascript(trace, "newestText(trace, 0, state.stepsDone, 99)", ends)
    assert len(texts[-1]) >= 1
    assert "日本".startswith(texts[-1])
    assert not any("\ufffd" in text for text in texts)
    assert (
        in_javascript(trace, "[0, 1, 2, 3].map((turn) => cellLabel(trace, turn))", [0.0])[0] == ["½ char"] * 4
    )


@needs_node
def test_a_bounded_and_an_unfinished_trace_can_be_played() -> None:
    whole = crowd(Continuous(4))
    live = Trace(whole.header, whole.events[: len(whole.events) // 2], whole.pieces)
    bounded = Trace(whole.header, [], whole.pieces, max_events=60)
    for event in whole.events:
        bounded.record(event)
    assert bounded.dropped
    for trace in (live, bounded, Trace(whole.header)):
        data = packed(trace)
        assert in_javascript(trace, "state.running.length <= 4", [data["start"], data["end"]]) == [True, True]


def test_a_token_costs_a_few_bytes() -> None:
    trace = simulate(poisson(20, 300, seed=1, new_tokens=(40, 60)), Continuous(16), max_queue_size=500)
    tokens = sum(len(step.tokens) for step in trace.of_kind(Stepped))
    assert len(json.dumps(packed(trace))) < 6 * tokens


def test_users_have_the_colours_of_the_figures() -> None:
    assert player_data(three_users())["colours"]["users"] == list(palette.USER_COLOURS)
    assert not any(colour.lower() in style().lower() for colour in palette.USER_COLOURS)


# What a notebook keeps


@pytest.mark.parametrize("other", [None, crowd(Continuous(4))], ids=["one trace", "two traces"])
def test_without_a_kernel_there_is_a_picture_with_words(other: Trace | None) -> None:
    bundles = [player(three_users(), other, says="They take turns.")._repr_mimebundle_() for _ in range(2)]
    data, metadata = bundles[0]
    assert data["image/png"].startswith(b"\x89PNG")
    assert data["image/png"] == bundles[1][0]["image/png"]
    assert data["text/plain"] == bundles[1][0]["text/plain"] == metadata["image/png"]["alt"]
    assert "They take turns." in data["text/plain"]
    assert "user 3 computes" in data["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in data
    assert len(data["image/png"]) < 150_000


def test_the_words_are_its_repr() -> None:
    made: Player = player(three_users())
    assert repr(made) == made._repr_mimebundle_()[0]["text/plain"]


def test_the_fragment_needs_nothing_from_outside_and_no_text_ends_its_script() -> None:
    fragment = player_html(simulate(users([HOSTILE]), Interleaved(1), ScriptedModel.echo()))
    assert fragment.count("</script>") == 2
    # The namespace of SVG is a name that looks like an address; nothing is fetched from it.
    rest = fragment.replace("http://www.w3.org/2000/svg", "")
    assert not any(word in rest for word in ("http:", "https:", "\nimport ", 'moments.js"'))


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed: the player is not tried in a browser")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Screen:
    """A page with players on it, and what it complained about."""

    def __init__(self, browser: Any, folder: Path, *fragments: str, style: str = "", **settings: Any) -> None:
        file = folder / "page.html"
        body = "\n".join(fragments)
        file.write_text(
            f'<!doctype html><meta charset="utf-8"><body style="{style}">{body}', encoding="utf-8"
        )
        self.page = browser.new_page(viewport={"width": 716, "height": 900}, **settings)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())
        self.page.wait_for_function(
            f"document.querySelectorAll('.servelab-player').length === {len(fragments)}"
        )
        self.page.locator(".servelab-player").first.focus()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def text(self, selector: str, place: int = 0) -> str:
        return str(self.page.locator(selector).nth(place).inner_text())

    def cells(self, row: int) -> list[str]:
        there: list[str] = self.page.locator(".row").nth(row).locator(".cell:visible").all_inner_texts()
        return [one.strip() for one in there]


def test_keys_step_through_the_run_and_both_queues_are_seen(browser: Any, tmp_path: Path) -> None:
    screen = Screen(browser, tmp_path, player_html(three_users(), says="They take turns."))
    assert screen.cells(0) == ["prompt"]
    screen.press(*["ArrowRight"] * 4)
    assert screen.cells(0)[:2] == ["A", "queue"]
    assert "user 3" in screen.text(".box", 0)
    assert "1 waiting" in screen.text(".box", 0)
    assert "2 running" in screen.text(".box", 1)
    assert "limit 2" in screen.text(".box", 1)
    assert "model step 4" in screen.text(".box", 2)
    assert "user 2 receives" in screen.text("[role=status]")
    assert "waiting" in screen.text(".row .state", 2)
    screen.press("ArrowLeft", "ArrowLeft")
    assert screen.cells(0) == ["A", ""]  # the second is being computed
    assert screen.cells(1) == ["Taking"]
    screen.press("End")
    assert "ended: length, 5 tokens" in screen.text(".row .state", 0)
    assert screen.text(".row .text", 0).strip() == "A queue is a line"
    screen.press("Home")
    assert screen.text(".clock").startswith("0.00")
    assert "simulated" in screen.text(".caption")
    assert not screen.complaints


def test_letters_never_reach_the_notebook_but_its_own_shortcuts_do(browser: Any, tmp_path: Path) -> None:
    """In JupyterLab a plain "x" would cut the cell; Ctrl+S must still save."""
    screen = Screen(browser, tmp_path, player_html(three_users()))
    screen.page.evaluate("window.heard = []; onkeydown = (event) => heard.push(event.key); 0")
    screen.press("x", "ArrowRight", " ", " ", "Control+y")
    assert screen.page.evaluate("heard") == ["Control", "y"]


def test_it_plays_pauses_and_comes_to_its_end(browser: Any, tmp_path: Path) -> None:
    screen = Screen(browser, tmp_path, player_html(three_users()))
    screen.press("+", "+", "+", " ")
    assert screen.text(".play") == "Pause"
    screen.press(" ")
    assert screen.text(".play") == "Play"
    screen.press(" ")
    screen.page.wait_for_function("document.querySelector('.status').textContent.startsWith('at the end')")
    assert screen.text(".play") == "Play"
    screen.page.get_by_label("One model step back").click()
    assert "back at" in screen.text("[role=status]")
    assert not screen.complaints


def test_scrubbing_goes_to_any_moment(browser: Any, tmp_path: Path) -> None:
    trace = three_users()
    screen = Screen(browser, tmp_path, player_html(trace))
    moment = next(trace.of_kind(Admitted)).time + trace.duration / 2
    screen.page.get_by_label("Time").evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", moment
    )
    assert screen.text(".clock").startswith(f"{moment:.2f}")
    state = replayed(trace, moment)
    assert f"{len(state['running'])} running" in screen.text(".box", 1)
    assert not screen.complaints


def test_kv_memory_is_seen_block_by_block(browser: Any, tmp_path: Path) -> None:
    """Two who begin alike share two blocks; with too little memory somebody is preempted."""
    prompts = [[7] * 9, [7] * 9, [1] * 9, [2] * 9]
    come = users(prompts, at=[0, 1.5, 2.5, 2.5], max_new_tokens=[9, 9, 6, 9])
    trace = simulate(come, Continuous(4), ScriptedModel.long_text(time_per_token=1.0, memory=Blocks(14, 4)))
    screen = Screen(browser, tmp_path, player_html(trace))
    screen.press("End")
    assert "0 of 14 blocks held, 4 tokens each" in screen.text(".memory p")
    screen.press("Home")
    screen.press(*["ArrowRight"] * 3)
    assert "2 shared" in screen.text(".memory p")
    assert screen.page.locator(".block.shared").count() == 2
    assert screen.page.locator(".block").count() == 14
    gone = next(event for event in trace.of_kind(Preempted))
    screen.page.get_by_label("Time").evaluate(
        "(slider, time) => { slider.value = time; slider.dispatchEvent(new Event('input')); }", gone.time
    )
    assert "preempted" in screen.page.locator(".row .state").all_inner_texts()[3]


@pytest.mark.parametrize("width", [716, 1300])
def test_two_traces_run_on_one_clock(browser: Any, tmp_path: Path, width: int) -> None:
    one, other = crowd(StaticBatch(4)), crowd(Continuous(4))
    screen = Screen(browser, tmp_path, player_html(one, other, says="Two policies."))
    screen.page.set_viewport_size({"width": width, "height": 900})
    screen.press(*["ArrowRight"] * 40)
    time = float(screen.page.get_by_label("Time").input_value())
    for place, trace in enumerate((one, other)):
        state = replayed(trace, time)
        assert f"{len(state['waiting'])} waiting" in screen.text(".box", 3 * place)
        assert f"{len(state['running'])} running" in screen.text(".box", 3 * place + 1)
    screen.press("End")
    assert screen.text(".clock").startswith(f"{max(one.duration, other.duration):.2f}")
    assert "0 running" in screen.text(".box", 1)
    assert "0 running" in screen.text(".box", 4)
    assert not screen.complaints


def test_hostile_text_is_only_text(browser: Any, tmp_path: Path) -> None:
    trace = simulate(users([HOSTILE, "日本 🚆"], max_new_tokens=60), Interleaved(2), ScriptedModel.echo())
    screen = Screen(browser, tmp_path, player_html(trace, says=HOSTILE))
    screen.press("End")
    assert screen.page.title() == ""
    assert screen.page.locator(".servelab-player img, .servelab-player script").count() == 0
    assert "<script>" in screen.text(".row .text", 0)
    assert "🚆" in screen.text(".row .text", 1)
    assert not screen.complaints


def test_several_players_on_one_page_do_not_meet(browser: Any, tmp_path: Path) -> None:
    fragment = player_html(three_users())
    screen = Screen(browser, tmp_path, fragment, fragment)
    screen.press("End")
    assert screen.text(".clock", 0).split()[0] != screen.text(".clock", 1).split()[0]
    assert not screen.complaints


def test_without_scripts_the_picture_is_seen(browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(java_script_enabled=False)
    file = tmp_path / "page.html"
    file.write_text(player_html(three_users()), encoding="utf-8")
    page.goto(file.as_uri())
    assert "Interleaving timeline" in page.locator("img").get_attribute("alt")
    assert page.locator("img").bounding_box()["height"] > 100


LETTERS = """() => [...document.querySelectorAll('.servelab-player *')]
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()))
    .map((one) => parseFloat(getComputedStyle(one).fontSize))"""


@pytest.mark.parametrize("background", ["#ffffff", "#111111"])
def test_letters_are_readable_in_light_and_dark_and_nothing_sticks_out(
    browser: Any, tmp_path: Path, background: str
) -> None:
    screen = Screen(browser, tmp_path, player_html(crowd(Continuous(4))), style=f"background: {background}")
    screen.press(*["ArrowRight"] * 90)
    assert min(screen.page.evaluate(LETTERS)) >= 12
    assert screen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = screen.page.locator(".servelab-player.dark").count() == 1
    assert dark == (background == "#111111")
    ink = screen.page.locator(".servelab-player").evaluate("(one) => getComputedStyle(one).color")
    assert (int(ink.split("(")[1].split(",")[0]) > 200) == dark


def test_who_asked_for_less_motion_sees_whole_steps_only(browser: Any, tmp_path: Path) -> None:
    screen = Screen(browser, tmp_path, player_html(three_users()), reduced_motion="reduce")
    screen.press(" ")
    widths = screen.page.evaluate(
        """async () => {
            const seen = new Set();
            for (let frame = 0; frame < 40; frame++) {
                const fills = document.querySelectorAll('.cell.computing .fill');
                for (const fill of fills) seen.add(fill.style.width);
                await new Promise(requestAnimationFrame);
            }
            return [...seen];
        }"""
    )
    assert widths == ["0px"]


def test_a_long_run_stays_small_on_the_page(browser: Any, tmp_path: Path) -> None:
    trace = simulate(poisson(20, 400, seed=1, new_tokens=(30, 70)), Continuous(16), max_queue_size=500)
    screen = Screen(browser, tmp_path, player_html(trace))
    screen.press(*["ArrowRight"] * 30)
    assert screen.page.locator(".servelab-player *").count() < 600
    assert not screen.complaints
