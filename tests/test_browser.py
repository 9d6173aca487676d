"""A lesson in a real browser: JupyterLab, a kernel, and what the page then shows.

Does what a learner does: runs to the first prediction, answers it, runs the rest, moves a slider,
steps through a player, solves an exercise. Everything happens in folders and on a port of its own.
Needs a Chromium or Chrome (`find_browser` in start.py says where it looks) and skips without one.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from servelab.lab import lessons

REPOSITORY = Path(__file__).resolve().parents[1]
LESSON = "02_queue_and_concurrency_limit.ipynb"
RACES = "07_thread_safety.ipynb"
TASKS = "03_cooperative_multitasking.ipynb"
BATCHES = "04_static_and_continuous_batching.ipynb"
MEMORY = "05_kv_cache_memory.ipynb"
PROMPTS = "06_long_prompts.ipynb"
STREAMS = "09_batching_and_streams.ipynb"
DYNAMIC = "10_dynamic_batching.ipynb"
FIRST_AND_LAST = "11_first_and_last_batch.ipynb"
SETUP = runpy.run_path(str(REPOSITORY / "start.py"))
BROWSER = SETUP["find_browser"]()
IDLE = re.compile(r"Python 3.*\| Idle")  # the status bar; the notebook's own indicator says idle too early
START, RUN_ALL, CLICK = 60, 240, 30  # seconds of patience

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None, reason="no Chromium or Chrome: install one (on Debian `sudo apt install chromium`)"
    ),
]


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab and the folder that it serves."""

    address: str
    token: str
    folder: Path

    def page_of(self, notebook: str) -> str:
        return f"{self.address}/lab/tree/{notebook}?token={self.token}&reset"

    def end_all_kernels(self) -> None:
        """As if JupyterLab had been stopped for the night."""
        headers = {"Authorization": f"token {self.token}"}
        kernels = urllib.request.Request(f"{self.address}/api/kernels", headers=headers)
        with urllib.request.urlopen(kernels) as reply:
            running = [kernel["id"] for kernel in json.load(reply)]
        for kernel in running:
            address = f"{self.address}/api/kernels/{kernel}"
            urllib.request.urlopen(urllib.request.Request(address, headers=headers, method="DELETE")).close()

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/api/status?token={self.token}", timeout=2) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


SETTINGS = {
    # All cells are in the page, and not only those in view: the test looks at any of them.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def private_folders(home: Path) -> dict[str, str]:
    """Settings, state and guesses of this test alone; the weights stay where they are."""
    for name, values in SETTINGS.items():
        file = home / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
        "SERVELAB_DATA": "guesses",
    }
    # The browser wants a core too: see environment() in start.py.
    calm = {"GOMP_SPINCOUNT": "1000"}
    return {**os.environ, **calm, **{name: str(home / folder) for name, folder in places.items()}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    home = tmp_path_factory.mktemp("lab")
    lessons.copy_new(copies=home / "my-lessons")
    SETUP["set_defaults_of_jupyter"](home / "defaults")
    port, token = free_port(), secrets.token_hex(16)
    running = Lab(f"http://127.0.0.1:{port}", token, home / "my-lessons")
    options = [
        f"--ServerApp.root_dir={running.folder}",
        f"--LabApp.app_settings_dir={home / 'defaults'}",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        "--ServerApp.shutdown_no_activity_timeout=600",  # if this test is killed, it still ends
        "--MappingKernelManager.cull_idle_timeout=300",
    ]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *options]
    log = home / "jupyterlab.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, env=private_folders(home), stdout=output, stderr=output)
    try:
        wait_for(running, server, log)
        yield running
    finally:
        server.terminate()  # it ends its kernels before itself
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for(running: Lab, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START
    while not running.answers():
        if server.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"JupyterLab does not answer:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * CLICK)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER)
        yield launched
        launched.close()


def opened(lab: Lab, browser: Any, lesson: str) -> Any:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(1000 * CLICK)
    page.goto(lab.page_of(lesson), timeout=1000 * START)
    return page


@pytest.fixture(scope="module")
def page(lab: Lab, browser: Any) -> Any:
    return opened(lab, browser, LESSON)


# What a learner sees and does


def cells(lab: Lab, lesson: str = LESSON) -> list[dict[str, Any]]:
    notebook: dict[str, Any] = json.loads((lab.folder / lesson).read_text(encoding="utf-8"))
    return [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"]]


def place_of(lab: Lab, code: str, after: int = -1, lesson: str = LESSON) -> int:
    """The first code cell behind `after` that contains `code`."""
    found = (
        place
        for place, cell in enumerate(cells(lab, lesson))
        if place > after and cell["cell_type"] == "code" and code in cell["source"]
    )
    return next(found)


def cell_at(page: Any, place: int) -> Any:
    return page.locator(".jp-Notebook .jp-Cell").nth(place)


def output_at(page: Any, place: int) -> Any:
    return cell_at(page, place).locator(".jp-Cell-outputArea")


def wait_until_idle(page: Any, seconds: float) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#jp-main-statusbar")).to_contain_text(IDLE, timeout=1000 * seconds)


def select(page: Any, place: int) -> None:
    """Select a cell without changing into its text."""
    cell_at(page, place).locator(".jp-InputPrompt").click()


def choose_from_run_menu(page: Any, entry: str) -> None:
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{entry}$")).click()


def errors(page: Any) -> list[str]:
    texts: list[str] = page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
    return texts


PICTURE_BYTES = """async (image) => {
    const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
    return [...bytes].map((byte) => byte.toString(16)).join("");
}"""


def picture(page: Any, place: int) -> str:
    """The bytes of a widget's picture: its address changes with every drawing, the drawing may not."""
    drawn: str = output_at(page, place).locator("img").first.evaluate(PICTURE_BYTES)
    return drawn


def replace_source(page: Any, place: int, source: str) -> None:
    cell_at(page, place).locator(".cm-content").click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.insert_text(source)  # at once: typed letter by letter, brackets would close themselves


def test_a_prediction_is_answered_before_the_run_and_drawn_after_it(lab: Lab, page: Any) -> None:
    from playwright.sync_api import expect

    wait_until_idle(page, START)
    asked = place_of(lab, "lab.predict(")
    select(page, asked)
    choose_from_run_menu(page, "Run All Above Selected Cell")
    select(page, asked)
    page.keyboard.press("Shift+Enter")
    choices = output_at(page, asked).locator("input[type=radio]")
    expect(choices.first).to_be_visible(timeout=1000 * RUN_ALL)
    expect(output_at(page, asked).locator("input[type=radio]:checked")).to_have_count(0)
    choices.first.click()
    wait_until_idle(page, RUN_ALL)

    select(page, asked + 1)
    choose_from_run_menu(page, "Run Selected Cell and All Below")
    wait_until_idle_again(page, lab)
    compared = place_of(lab, "lab.compare(", after=asked)
    expect(output_at(page, compared)).to_contain_text(re.compile("[Yy]ou expected"))
    expect(cell_at(page, compared).locator(".jp-InputArea-editor")).to_be_hidden()  # it tells the answer
    assert errors(page) == []


def test_the_first_guess_is_shown_when_its_cell_runs_again(lab: Lab, page: Any) -> None:
    from playwright.sync_api import expect

    asked = place_of(lab, "lab.predict(")
    select(page, asked)
    page.keyboard.press("ControlOrMeta+Enter")
    choices = output_at(page, asked).locator("input[type=radio]")
    expect(choices.first).to_be_checked()
    expect(choices.first).to_be_disabled()


def test_a_question_is_one_stop_for_the_tab_key_and_arrows_move_within_it(lab: Lab, page: Any) -> None:
    from playwright.sync_api import expect

    first = place_of(lab, "lab.predict(")
    choices = output_at(page, place_of(lab, "lab.predict(", after=first)).locator("input[type=radio]")
    choices.first.focus()
    page.keyboard.press("ArrowDown")
    expect(choices.nth(1)).to_be_checked()
    expect(choices.nth(1)).to_be_focused()
    assert choices.nth(1).evaluate("one => getComputedStyle(one).outlineStyle") != "none"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") != "radio"


def wait_until_idle_again(page: Any, lab: Lab, lesson: str = LESSON) -> None:
    """The last cell shows its result only when all before it have run."""
    from playwright.sync_api import expect

    last = max(place for place, cell in enumerate(cells(lab, lesson)) if cell["cell_type"] == "code")
    expect(cell_at(page, last).locator(".jp-InputPrompt")).to_have_text(
        re.compile(r"\[\d+\]"), timeout=1000 * RUN_ALL
    )
    wait_until_idle(page, RUN_ALL)


def opened_and_run(lab: Lab, browser: Any, lesson: str) -> Any:
    """A lesson all of whose cells have run without an error."""
    page = opened(lab, browser, lesson)
    wait_until_idle(page, START)
    choose_from_run_menu(page, "Run All Cells")
    wait_until_idle_again(page, lab, lesson)
    assert errors(page) == []
    return page


def move_a_slider(page: Any, place: int) -> None:
    """And wait until its cell has drawn another picture."""
    from playwright.sync_api import expect

    before = picture(page, place)
    slider = output_at(page, place).get_by_role("slider").first
    shown = slider.get_attribute("aria-valuetext")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(slider).not_to_have_attribute("aria-valuetext", str(shown))
    deadline = time.monotonic() + CLICK
    while picture(page, place) == before:
        assert time.monotonic() < deadline, "the picture is still the one before"
        page.wait_for_timeout(200)


def test_a_moved_slider_draws_another_picture(lab: Lab, page: Any) -> None:
    move_a_slider(page, place_of(lab, "lab.knobs("))


def test_keys_step_through_a_player(page: Any) -> None:
    step_through_the_first_player(page)


def step_through_the_first_player(page: Any) -> None:
    from playwright.sync_api import expect

    player = page.locator(".servelab-player").first
    player.scroll_into_view_if_needed()
    player.focus()
    status, count = player.get_by_role("status"), page.locator(".jp-Notebook .jp-Cell").count()
    page.keyboard.press("Home")
    expect(status).to_contain_text("at the beginning")
    beginning = player.inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(status).not_to_contain_text("at the beginning")
    assert player.inner_text() != beginning
    page.keyboard.press("End")
    expect(status).to_contain_text("at the end")
    page.keyboard.press("b")  # for JupyterLab "a new cell", but not while a player has the keyboard
    page.wait_for_timeout(300)
    assert page.locator(".jp-Notebook .jp-Cell").count() == count


def test_a_solved_exercise_says_so(lab: Lab, page: Any) -> None:
    from playwright.sync_api import expect

    place = place_of(lab, "\nexercises.check_wait(")
    expect(output_at(page, place)).to_contain_text("Not started")
    numbers = iter(("0.34", "0.58", "0.42"))
    source, changed = re.subn(r"(?m)= None.*$", lambda _: f"= {next(numbers)}", cells(lab)[place]["source"])
    assert changed == 3
    replace_source(page, place, source)
    page.keyboard.press("Shift+Enter")
    expect(output_at(page, place)).to_contain_text("Passed")
    expect(output_at(page, place)).not_to_contain_text("Not started")
    assert errors(page) == []


def test_the_lesson_on_races_runs_and_a_race_is_written_down(lab: Lab, browser: Any) -> None:
    """Threads, tracing and a process of its own for each exercise, in a kernel of a real JupyterLab."""
    from playwright.sync_api import expect

    page = opened_and_run(lab, browser, RACES)
    move_a_slider(page, place_of(lab, "lab.knobs(", lesson=RACES))
    words = page.locator(".jp-OutputArea-output img").evaluate_all("(all) => all.map((one) => one.alt)")
    assert len(words) >= 2
    assert all(words)

    place = place_of(lab, "\nexercises.check_not_to_be_shared(", lesson=RACES)
    replace_source(page, place, 'exercises.check_not_to_be_shared(["filled", "listed"])')
    page.keyboard.press("Shift+Enter")
    expect(output_at(page, place)).to_contain_text("Passed")
    assert errors(page) == []


def test_the_lesson_on_tasks_streams_three_users_and_a_worker_is_kept(lab: Lab, browser: Any) -> None:
    """Its cells await on the loop that serves the notebook, and so does the worker that a learner mends."""
    from playwright.sync_api import expect

    page = opened_and_run(lab, browser, TASKS)
    streams = output_at(page, place_of(lab, "max_concurrency=3", lesson=TASKS))
    for user in ("ann", "bob", "eve"):
        expect(streams).to_contain_text(f"{user} ended: ")
    expect(output_at(page, place_of(lab, 'tasks["bob"].cancel()', lesson=TASKS))).to_contain_text(
        "bob ended: DISCONNECTED"
    )
    place = place_of(lab, "\nexercises.check_worker(", lesson=TASKS)
    stub = "".join(cells(lab, TASKS)[place]["source"])
    open_step = """        outcomes = await compute(step)
        engine.finish_step(step, outcomes)
"""
    finished_step = """        outcomes = RuntimeError("stopped")
        try:
            outcomes = await compute(step)
        except Exception as error:
            outcomes = error
        finally:
            engine.finish_step(step, outcomes)
        await asyncio.sleep(0)
"""
    assert open_step in stub
    replace_source(page, place, stub.replace(open_step, finished_step))
    page.keyboard.press("Shift+Enter")
    expect(output_at(page, place)).to_contain_text("Passed", timeout=1000 * CLICK)
    kept = place_of(lab, "lab.keep(", lesson=TASKS)
    cell_at(page, kept).click()
    page.keyboard.press("Shift+Enter")
    expect(output_at(page, kept)).to_contain_text("Kept as", timeout=1000 * CLICK)
    expect(output_at(page, kept)).to_contain_text("People wait", timeout=1000 * CLICK)
    assert errors(page) == []


def test_the_lesson_on_batching_runs_and_a_batching_plan_is_scored(lab: Lab, browser: Any) -> None:
    """The measured figures, the sliders, an exercise that is solved, and the challenge with that solution."""
    from playwright.sync_api import expect

    page = opened_and_run(lab, browser, BATCHES)
    move_a_slider(page, place_of(lab, "lab.knobs(", lesson=BATCHES))
    place = place_of(lab, "\nexercises.check_batching_plan(", lesson=BATCHES)
    stub = "".join(cells(lab, BATCHES)[place]["source"])
    free = "self.capacity - len(view.running)"
    assert f"view.waiting[: {free}]" in stub
    half = f"view.waiting[: {free}] if 2 * ({free}) >= self.capacity else ()"
    replace_source(page, place, stub.replace(f"view.waiting[: {free}]", half))
    page.keyboard.press("Shift+Enter")
    expect(output_at(page, place)).to_contain_text("Passed")
    last = place_of(lab, "lab.score(", lesson=BATCHES)
    cell_at(page, last).click()
    page.keyboard.press("Shift+Enter")
    expect(output_at(page, last)).to_contain_text("It beats Continuous on", timeout=1000 * CLICK)
    assert errors(page) == []


def test_the_lesson_on_kv_memory_runs_and_a_block_table_is_kept(lab: Lab, browser: Any) -> None:
    """The measured figures, the calculator's sliders, the player's blocks; the exercise, solved and kept."""
    from playwright.sync_api import expect

    page = opened_and_run(lab, browser, MEMORY)
    move_a_slider(page, place_of(lab, "lab.knobs(", lesson=MEMORY))
    player = output_at(page, place_of(lab, "lab.player(", lesson=MEMORY))
    expect(player).to_contain_text("of 22 blocks held, 16 tokens each")
    place = place_of(lab, "\nexercises.check_block_table(", lesson=MEMORY)
    stub = "".join(cells(lab, MEMORY)[place]["source"])
    solved = stub.replace("        return None  # write this method", GROW).replace(
        "        pass  # and this one", "        self.unused += self.__dict__.pop(request_id, [])"
    )
    replace_source(page, place, solved)
    page.keyboard.press("Shift+Enter")
    expect(output_at(page, place)).to_contain_text("Passed", timeout=1000 * CLICK)
    kept = place_of(lab, "lab.keep(", lesson=MEMORY)
    cell_at(page, kept).click()
    page.keyboard.press("Shift+Enter")
    expect(output_at(page, kept)).to_contain_text("Kept as", timeout=1000 * CLICK)
    assert errors(page) == []


GROW = """        table = self.__dict__.setdefault(request_id, [])
        missing = -(-tokens // self.block_size) - len(table)
        if missing > len(self.unused):
            raise sl.OutOfBlocks
        table += [self.unused.pop() for _ in range(missing)]
        return list(table)"""


def test_the_lesson_on_long_prompts_runs_and_a_prompt_is_put_in_order(lab: Lab, browser: Any) -> None:
    from playwright.sync_api import expect

    page = opened_and_run(lab, browser, PROMPTS)
    place = place_of(lab, "\nexercises.check_prompt(", lesson=PROMPTS)
    stub = "".join(cells(lab, PROMPTS)[place]["source"])
    assert "{date} {rules} {document} {question}" in stub
    right = "{rules} {document} {date} {question}"
    replace_source(page, place, stub.replace("{date} {rules} {document} {question}", right))
    page.keyboard.press("Shift+Enter")
    expect(output_at(page, place)).to_contain_text("Passed", timeout=1000 * CLICK)
    assert errors(page) == []


def test_the_lesson_on_first_and_last_batches_runs_and_memory_is_made_flat(lab: Lab, browser: Any) -> None:
    from playwright.sync_api import expect

    page = opened_and_run(lab, browser, FIRST_AND_LAST)
    move_a_slider(page, place_of(lab, "lab.knobs(at_the_peak", lesson=FIRST_AND_LAST))
    place = place_of(lab, "\nexercises.check_serve(", lesson=FIRST_AND_LAST)
    replace_source(page, place, FLAT + "\n\n\nexercises.check_serve(serve)")
    page.keyboard.press("Shift+Enter")
    expect(output_at(page, place)).to_contain_text("Passed", timeout=1000 * CLICK)
    assert errors(page) == []


def test_the_lesson_on_streams_runs_and_its_last_exercise_is_solved(lab: Lab, browser: Any) -> None:
    """The measured figures, real worker processes, the slider, and the exercise on sharing the work out."""
    from playwright.sync_api import expect

    page = opened_and_run(lab, browser, STREAMS)
    move_a_slider(page, place_of(lab, "lab.knobs(timeline", lesson=STREAMS))
    workers = place_of(lab, "prepare=picture, workers=2", lesson=STREAMS)
    expect(output_at(page, workers)).to_contain_text("in order, and none twice: True")
    place = place_of(lab, "\nexercises.check_share(", lesson=STREAMS)
    stub = "".join(cells(lab, STREAMS)[place]["source"])
    assert "    return in_batches(items, size)\n" in stub
    share = """    for number, batch in enumerate(in_batches(items, size)):
        if number % workers == worker:
            yield batch
"""
    replace_source(page, place, stub.replace("    return in_batches(items, size)\n", share))
    page.keyboard.press("Shift+Enter")
    expect(output_at(page, place)).to_contain_text("Passed", timeout=1000 * CLICK)
    assert errors(page) == []


def test_the_lesson_on_dynamic_batching_runs_and_its_rule_is_written(lab: Lab, browser: Any) -> None:
    """The naive batcher breaks, the mended one does not, in threads and on the kernel's own event loop."""
    from playwright.sync_api import expect

    page = opened_and_run(lab, browser, DYNAMIC)
    move_a_slider(page, place_of(lab, "lab.knobs(timeline", lesson=DYNAMIC))
    naive = output_at(page, place_of(lab, "ask(impatient, crowd)", lesson=DYNAMIC))
    expect(naive).to_contain_text("TimeoutError")
    mended = output_at(page, place_of(lab, "ask(Mended(classify).run, crowd)", lesson=DYNAMIC))
    expect(mended).to_contain_text("from an event loop: [4]")
    expect(mended).not_to_contain_text("TimeoutError")
    place = place_of(lab, "\nexercises.check_rule(", lesson=DYNAMIC)
    rule = """def how_many(came, now, was_busy):
    due = len(came) >= 4 or now - came[0] >= 100 or was_busy
    return min(len(came), 4) if due else 0


exercises.check_rule(how_many)"""
    replace_source(page, place, rule)
    page.keyboard.press("Shift+Enter")
    expect(output_at(page, place)).to_contain_text("Passed", timeout=1000 * CLICK)
    assert errors(page) == []


FLAT = """def serve(network, pictures):
    batch, results = torch.zeros(8, *pictures.shape[1:]), None
    for first in range(0, len(pictures), 8):
        items = pictures[first : first + 8]
        batch[: len(items)] = items
        output = network(batch)
        if results is None:
            results = torch.zeros(len(pictures), *output.shape[1:])
        results[first : first + len(items)] = output[: len(items)]
    return results"""


# Everything with words and every bar in an output, with its contrast to the page, as WCAG counts it.
CONTRASTS = """(output) => {
    const drawn = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const light = (colour, under) => {
        drawn.fillStyle = under; drawn.fillRect(0, 0, 1, 1);
        drawn.fillStyle = colour; drawn.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...drawn.getImageData(0, 0, 1, 1).data].slice(0, 3).map((one) => one / 255)
            .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (part) => {
        const own = getComputedStyle(part).backgroundColor;
        return own === "rgba(0, 0, 0, 0)" && part.parentElement ? ground(part.parentElement) : own;
    };
    const against = (colour, under) => {
        const [one, other] = [light(colour, under), light(under, "white")];
        return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    };
    const found = [];
    for (const part of output.querySelectorAll("*")) {
        const {color, backgroundColor} = getComputedStyle(part);
        const texts = [...part.childNodes].filter((one) => one.nodeType === Node.TEXT_NODE);
        const words = texts.map((one) => one.data.trim()).join("");
        if (words && part.getClientRects().length) found.push([words, against(color, ground(part))]);
        const bar = part.style.background && !part.textContent.trim();
        if (bar) found.push(["a bar", against(backgroundColor, ground(part.parentElement))]);
    }
    return found;
}"""


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_words_and_bars_are_seen_in_both_themes(lab: Lab, page: Any, theme: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    page.keyboard.press("Escape")
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Settings$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Theme$")).hover()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^JupyterLab {theme}$")).click()
    is_light = page.locator(f"body[data-jp-theme-light={'true' if theme == 'Light' else 'false'}]")
    expect(is_light).to_have_count(1)
    expect(page.locator("#jupyterlab-splash")).to_have_count(0)
    for code in (
        "lab.watch(",
        "lab.predict(",
        "lab.compare(",
        "lab.knobs(",
        "lab.source(",
        "exercises.check_wait(",
    ):
        output = output_at(page, place_of(lab, code))
        output.scroll_into_view_if_needed()
        output.screenshot(path=tmp_path / f"{theme}-{code.strip('(')}.png")
        found = output.evaluate(CONTRASTS)
        assert found
        assert [(words, round(ratio, 1)) for words, ratio in found if ratio < 4.5] == []


def test_a_lesson_opened_the_next_day_shows_guess_slider_and_player(
    lab: Lab, browser: Any, page: Any
) -> None:
    from playwright.sync_api import expect

    page.keyboard.press("Escape")
    page.keyboard.press("ControlOrMeta+s")
    expect(page.locator(".jp-mod-current .jp-DirtyIndicator, .lm-TabBar-tab.jp-mod-dirty")).to_have_count(0)
    page.close()
    lab.end_all_kernels()

    again = opened(lab, browser, LESSON)
    asked = place_of(lab, "lab.predict(")
    expect(output_at(again, asked).locator("input[type=radio]:checked")).to_have_count(
        1, timeout=1000 * START
    )
    expect(output_at(again, place_of(lab, "lab.compare(", after=asked))).to_contain_text("You expected")
    expect(output_at(again, place_of(lab, "lab.knobs(")).locator("img").first).to_be_visible()
    expect(again.get_by_text("model not found")).to_have_count(0)
    step_through_the_first_player(again)


def test_a_page_without_a_kernel_takes_a_guess_and_then_shows_what_happened(
    browser: Any, tmp_path: Path
) -> None:
    """Without a kernel, and on a phone, where nothing makes the whole page scroll sideways."""
    from playwright.sync_api import expect

    from servelab.lab.editions import html

    html.run(tmp_path)
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto((tmp_path / LESSON).with_suffix(".html").as_uri())
    result = page.locator(".servelab-comparison").first
    expect(result).to_be_hidden()
    page.locator(".servelab-question input").first.check()
    page.locator("details.reveal summary").first.click()
    expect(result).to_be_visible()
    said = result.evaluate("one => getComputedStyle(one, '::before').content")
    assert "You expected" in said
    sliders = page.locator(".servelab-knobs")
    sliders.scroll_into_view_if_needed()
    drawn = [sliders.locator("img").evaluate(PICTURE_BYTES)]
    for slider in sliders.locator("input").all():
        slider.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(100)
        drawn.append(sliders.locator("img").evaluate(PICTURE_BYTES))
    assert len(set(drawn)) == len(drawn) == 4
    tops = [one.bounding_box()["y"] for one in sliders.locator("label").all()]  # type: ignore[index]
    assert tops == sorted(set(tops))  # one below the other
    assert "Three panels" in str(sliders.locator("img").get_attribute("alt"))
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    for lesson in tmp_path.glob("*.html"):
        assert lesson.stat().st_size < 3_000_000
        page.goto(lesson.as_uri())
        assert broken == [], lesson.name
        assert page.locator("[data-servelab-sliders]").count() == 0, lesson.name  # each is served once
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, lesson.name
        for figure in page.locator(".output_area img").all():
            assert figure.bounding_box()["width"] > 600, lesson.name  # type: ignore[index]
        for box in page.locator(".servelab-player .box").all():
            assert box.evaluate("(one) => one.scrollWidth <= one.clientWidth"), lesson.name
    page.close()
