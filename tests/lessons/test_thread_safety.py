"""What the lesson on thread safety says, and where each of its sentences stops being true.

Nothing here is left to luck: threads meet where the test makes them meet.
"""

import asyncio
import contextvars
import dis
import importlib.util
import inspect
import json
import re
import textwrap
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import PreTrainedTokenizerFast

from servelab import thread_safety
from servelab.lab.exercises.thread_safety import FOUR, NOT_TO_BE_SHARED, adding, asking, in_short
from servelab.thread_safety import (
    CriticalSection,
    Verdict,
    audit,
    explore,
    hammer,
    replay_schedule,
    specimens,
)

LESSON = Path(__file__).resolve().parents[2] / "notebooks" / "07_thread_safety.ipynb"


def prose() -> str:
    cells = json.loads(LESSON.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(one["source"]) for one in cells if one["cell_type"] == "markdown")


def shown_code(containing: str) -> str:
    """The piece of code in the prose that has this in it."""
    return next(one for one in re.findall(r"```python\n(.*?)```", prose(), re.DOTALL) if containing in one)


@pytest.mark.parametrize("source", [specimens.Tally, specimens.LockedTally.add, specimens.Stash.forward])
def test_the_code_of_the_library_that_the_prose_shows_is_the_librarys(source: Any) -> None:
    assert textwrap.dedent(inspect.getsource(source)) in re.findall(
        r"```python\n(.*?)```", prose(), re.DOTALL
    )


# To keep, 1


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * 36, 2))


def pictures(count: int) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 8, 8, generator=draws) for _ in range(count)]


def test_a_model_in_eval_that_writes_only_local_variables_may_be_called_from_many_threads() -> None:
    """And two of its reasons removed."""
    assert hammer(network().eval(), pictures(20), threads=4, rounds=3).no_difference
    assert audit(network().eval(), pictures(1)[0]).verdict is Verdict.SAFE
    assert audit(network().train(), pictures(1)[0]).verdict is Verdict.UNSAFE
    stash = specimens.named("stash")
    assert audit(stash.build().eval(), *stash.inputs(2)).verdict is Verdict.UNSAFE
    assert audit(stash.build_safe().eval(), *stash.inputs(2)).verdict is Verdict.SAFE


def test_in_training_mode_another_order_is_enough_for_other_numbers() -> None:
    assert not hammer(network().train(), pictures(5), threads=1).repeatable
    without_dropout = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 64)).train()
    again = hammer(without_dropout, pictures(5), threads=1)
    assert again.repeatable
    backwards = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 64)).train()
    for picture in reversed(pictures(5)):
        backwards(picture)
    assert not torch.equal(without_dropout[1].running_mean, backwards[1].running_mean)


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Linear(1, 1, bias=False) for _ in range(2))
        for weight in self.parameters():
            nn.init.ones_(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        between = self.one(x)
        return self.two(between)


def test_a_call_may_meet_half_of_the_old_parameters_and_half_of_the_new() -> None:
    """Where sentence 1 stops being true without its last half: all weights become 2 during a call."""
    doubled = {name: 2 * weight for name, weight in TwoLayers().state_dict().items()}

    def old_or_new(_: object, results: list[Any]) -> None:
        assert float(results[0].detach()) in (1.0, 4.0)

    tasks = [lambda model: model(torch.ones(1, 1)), lambda model: model.load_state_dict(doubled)]
    assert explore(CriticalSection(TwoLayers, tasks, old_or_new), progress=False).breaking > 0


@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_older_norms_write_their_weight_in_eval_too(wrap: Any) -> None:
    report = audit(wrap(nn.Linear(4, 4)).eval(), torch.ones(1, 4))
    assert report.verdict is not Verdict.SAFE
    assert [one.name for one in report.problems] == ["weight"]


class Scaled:
    """Its forward writes nothing; somebody else may set an attribute meanwhile."""

    def __init__(self) -> None:
        self.scale = 2.0

    def forward(self, x: float) -> float:
        scaled = self.scale * x
        return scaled / self.scale

    def set(self, scale: float) -> None:
        self.scale = scale


def test_an_attribute_that_somebody_changes_meanwhile_is_enough_to_spoil_an_answer() -> None:
    def one(_: Scaled, answers: list[float | None]) -> None:
        assert answers[0] == 1.0

    tasks = [lambda model: model.forward(1.0), lambda model: model.set(4.0)]
    found = explore(CriticalSection(Scaled, tasks, one), progress=False)
    assert found.complete
    assert 0 < found.breaking < found.interleavings


def test_the_critical_section_that_the_prose_shows_is_explored_as_the_lessons_own() -> None:
    world = {"thread_safety": thread_safety, "specimens": specimens}
    exec(shown_code("CriticalSection(specimens.Tally"), world)
    found, own = (explore(one, progress=False) for one in (world["adds"], adding(specimens.Tally)))
    assert (found.interleavings, found.breaking) == (own.interleavings, own.breaking) == (20, 18)


# To keep, 2


def test_a_test_that_passes_proves_nothing_about_threads() -> None:
    """One after the other the tally is right; of 20 interleavings only two are."""
    tally = specimens.Tally()
    tally.add()
    tally.add()
    assert tally.value == 2
    found = explore(adding(specimens.Tally), progress=False)
    assert (found.interleavings, found.breaking, found.complete) == (20, 18, True)
    twice = [replay_schedule(adding(specimens.Tally), found.simplest.schedule) for _ in range(2)]
    assert twice[0] == twice[1]
    assert twice[0].broken


def test_a_tally_is_lucky_because_nothing_is_called_between_its_read_and_its_write() -> None:
    """And a module is not, which stores its attributes by a function in Python."""
    names = [one.opname for one in dis.get_instructions(specimens.Tally.add)]
    read, write = names.index("LOAD_ATTR"), names.index("STORE_ATTR")
    assert not [name for name in names[read:write] if name.startswith(("CALL", "JUMP", "RESUME"))]
    assert inspect.isfunction(nn.Module.__setattr__)
    assert specimens.Tally.__setattr__ is object.__setattr__


def test_the_lock_survives_all_interleavings_of_two_threads_and_of_three_with_two_forced_switches() -> None:
    two = explore(adding(specimens.LockedTally), progress=False)
    assert (two.interleavings, two.breaking, two.complete) == (50, 0, True)
    three = explore(adding(specimens.LockedTally, 3), switches=2, progress=False)
    assert (three.interleavings, three.breaking, three.complete) == (852, 0, True)
    assert not explore(adding(specimens.LockedTally, 3), most=2_000, progress=False).complete


LIBRARY = '''
scratch = [0]


def between():
    """An operator that gives up the GIL here would let another thread in."""


def doubled(number):
    scratch[0] = number
    between()
    return 2 * scratch[0]
'''


@pytest.fixture
def library(tmp_path: Path) -> ModuleType:
    """Installed where libraries are."""
    path = tmp_path / "site-packages" / "scratchy.py"
    path.parent.mkdir()
    path.write_text(LIBRARY)
    spec = importlib.util.spec_from_file_location("scratchy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_race_inside_a_library_call_is_not_found(library: Any) -> None:
    """Where sentence 2 stops being true without its last half."""

    class Layer:
        def __init__(self) -> None:
            self.offset = 1

        def forward(self, number: int) -> int:
            return library.doubled(number) + self.offset

    def right(_: object, results: list[int]) -> None:
        assert results == [3, 11]

    tasks = [lambda layer: layer.forward(1), lambda layer: layer.forward(5)]
    found = explore(CriticalSection(Layer, tasks, right), progress=False)
    assert found.complete
    assert found.breaking == 0

    def another_call_comes_in() -> None:
        library.between = lambda: None
        library.doubled(5)

    library.between = another_call_comes_in
    assert library.doubled(1) == 10  # and it is a race


def test_what_holds_for_two_threads_may_not_hold_for_three() -> None:
    class TwoSeats:
        def __init__(self) -> None:
            self.taken = 0

        def sit(self) -> None:
            self.taken += 1

    def at_most_two(seats: TwoSeats, _: object) -> None:
        assert seats.taken <= 2

    held = [
        explore(CriticalSection(TwoSeats, [TwoSeats.sit] * threads, at_most_two), switches=1, progress=False)
        for threads in (2, 3)
    ]
    assert [one.breaking > 0 for one in held] == [False, True]


# To keep, 3


class Chat:
    """As in the lesson."""

    def __init__(self, next_token, length):
        self.next_token, self.length = next_token, length
        self.lock = threading.Lock()

    def ask(self, prompt):
        self.prompt, self.answer = prompt, []
        for _ in range(self.length):
            self.answer.append(self.next_token(self.prompt + self.answer))
        return self.answer


class LocalChat(Chat):
    def ask(self, prompt):
        answer = []
        for _ in range(self.length):
            answer.append(self.next_token(prompt + answer))
        return answer


class LockedChat(Chat):
    def ask(self, prompt):
        with self.lock:
            return super().ask(prompt)


class LockedInPieces(Chat):
    def ask(self, prompt):
        with self.lock:
            self.prompt, self.answer = prompt, []
        for _ in range(self.length):
            with self.lock:
                self.answer.append(self.next_token(self.prompt + self.answer))
        return self.answer


def test_local_variables_cure_and_a_lock_does_if_it_is_held_all_the_time() -> None:
    """Where it stops being true: a lock that is given back between the first write and the last read."""
    found = {
        kind: explore(asking(kind), switches=1, progress=False)
        for kind in (Chat, LocalChat, LockedChat, LockedInPieces)
    }
    assert all(one.complete for one in found.values())
    assert found[LocalChat].breaking == found[LockedChat].breaking == 0
    assert found[LockedInPieces].breaking > 0
    assert found[Chat].simplest.why == "A got B1 B2"


def test_the_picture_of_the_chat_shows_what_its_title_says() -> None:
    mixed = explore(asking(Chat), switches=1, progress=False)
    drawn = in_short(replay_schedule(asking(Chat), mixed.simplest.schedule))
    assert [(one.thread, one.seen) for one in drawn.actions] == [
        *[("A", "A → …"), ("B", "B → …"), ("B", "B → B1"), ("B", "B → B1 B2")],
        *[("A", "B → …"), ("A", "B → …"), ("A", "B → B1"), ("A", "B → B1"), ("A", "B → B1 B2")],
    ]


def asked_by_two_coroutines(put: Callable[[str], object], get: Callable[[], str]) -> list[str]:
    async def asked(user: str) -> str:
        put(user)
        await asyncio.sleep(0)  # the other one's turn
        return get()

    async def both() -> list[str]:
        return list(await asyncio.gather(asked("A"), asked("B")))

    return asyncio.run(both())


def test_what_each_thread_has_for_itself_two_coroutines_share() -> None:
    here, of_request = threading.local(), contextvars.ContextVar[str]("of_request")
    assert asked_by_two_coroutines(lambda user: setattr(here, "user", user), lambda: here.user) == ["B", "B"]
    assert asked_by_two_coroutines(of_request.set, of_request.get) == ["A", "B"]


def test_to_thread_takes_a_context_along_and_a_pool_does_not() -> None:
    of_request = contextvars.ContextVar("of_request", default="nobody")

    async def asked() -> list[str]:
        of_request.set("A")
        with ThreadPoolExecutor(1) as pool:
            loop = asyncio.get_running_loop()
            return [await asyncio.to_thread(of_request.get), await loop.run_in_executor(pool, of_request.get)]

    assert asyncio.run(asked()) == ["A", "nobody"]


# The folded boxes and the exercises


def test_the_deadlock_that_the_box_shows_is_found_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    exec(shown_code("class TwoLocks"), {"explore": explore, "thread_safety": thread_safety})
    printed = capsys.readouterr().out
    assert "150 interleavings, all there are: 60 break." in printed
    assert "A and B cannot go on." in printed
    assert "150 interleavings, 60 break, “A and B cannot go on”" in prose()


class TakesItTwice:
    def __init__(self, lock: Any) -> None:
        self.lock = lock

    def outer(self) -> None:
        with self.lock:
            self.inner()

    def inner(self) -> None:
        with self.lock:
            pass


@pytest.mark.parametrize(("make", "waits"), [(threading.Lock, True), (threading.RLock, False)])
def test_a_thread_waits_for_itself_unless_the_lock_may_be_taken_again(make: Any, waits: bool) -> None:
    section = CriticalSection(lambda: TakesItTwice(make()), [TakesItTwice.outer] * 2, lambda *_: None)
    assert (explore(section, switches=0, progress=False).breaking > 0) is waits


def test_inference_mode_belongs_to_a_thread() -> None:
    with torch.inference_mode(), ThreadPoolExecutor(1) as pool:
        assert torch.is_inference_mode_enabled()
        assert not pool.submit(torch.is_inference_mode_enabled).result()


def test_an_exception_that_is_kept_keeps_the_activations_of_its_call() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def fails(x: torch.Tensor) -> torch.Tensor:
        activation = x * 2
        held.append(weakref.ref(activation))
        raise RuntimeError("out of memory")

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fails, torch.ones(3))
        message = str(future.exception())
    assert held[0]() is not None
    del future
    assert held[0]() is None
    assert message == "out of memory"


def test_a_text_is_cut_to_the_length_that_another_thread_asked_for() -> None:
    """Forced: the second call comes in when the first has set its length, and has not encoded yet."""
    words = Tokenizer(WordLevel({"?": 0, "one": 1, "two": 2}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    set_length, visits = tokenizer.set_truncation_and_padding, SimpleNamespace(left=1)

    def then_another_comes(**settings: Any) -> None:
        set_length(**settings)
        if visits.left:
            visits.left = 0
            other = threading.Thread(target=cut, args=(20,))
            other.start()
            other.join()

    def cut(length: int) -> int:
        return len(tokenizer("one two " * 40, truncation=True, max_length=length)["input_ids"])

    assert cut(10) == 10
    tokenizer.set_truncation_and_padding = then_another_comes
    assert cut(10) == 20


def four_functions() -> dict[str, Any]:
    world: dict[str, Any] = {}
    exec(shown_code("def filled"), world)
    return {name: world[name] for name in FOUR}


@pytest.mark.parametrize("name", FOUR)
def test_the_four_functions_are_what_the_first_exercise_says(name: str) -> None:
    inputs = torch.ones(4), torch.arange(4.0)

    class Layer(nn.Module):
        forward = four_functions()[name]

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.space, self.lock, self.calls, self.scale = torch.zeros(4), threading.Lock(), 0, 2.0
            for weight in self.parameters():
                nn.init.ones_(weight)

    alone = [Layer()(one) for one in inputs]

    def as_alone(_: object, results: list[Any]) -> None:
        assert all(torch.equal(one, other) for one, other in zip(results, alone, strict=True))

    tasks = [lambda layer, one=one: layer(one) for one in inputs]
    found = explore(CriticalSection(Layer, tasks, as_alone), switches=2, progress=False)
    assert (found.breaking > 0) is (name in NOT_TO_BE_SHARED)


class Largest:
    """Guarded by one lock from the first use to the last, and what one call leaves is read by the next."""

    def __init__(self) -> None:
        self.largest, self.lock = 1, threading.Lock()

    def share(self, number: int) -> float:
        with self.lock:
            self.largest = max(self.largest, number)
            return number / self.largest


def test_what_one_call_leaves_for_the_next_no_lock_cures() -> None:
    def as_alone(_: Largest, answers: list[float]) -> None:
        assert answers == [1.0, 1.0]

    tasks = [lambda one: one.share(2), lambda one: one.share(4)]
    found = explore(CriticalSection(Largest, tasks, as_alone), progress=False)
    assert found.complete
    assert 0 < found.breaking < found.interleavings
