"""Activations are counted to the byte, and of requests that do not fit together one fails, not all."""

import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from servelab.memory import ActivationTally, Counting, activations, graph_bytes, parallel_memory
from servelab.thread_safety.specimens.generation import tiny_llama

ROWS, WIDTH, WIDE = 8, 16, 256
ONE_WIDE = ROWS * WIDE * 4  # bytes of the widest activation


def network() -> nn.Sequential:
    """Widest when both the input and the output of the ReLU are alive: two wide tensors."""
    generator = torch.Generator().manual_seed(3)
    made = nn.Sequential(nn.Linear(WIDTH, WIDE), nn.ReLU(), nn.Linear(WIDE, WIDTH))
    for weight in made.parameters():
        weight.data.normal_(generator=generator)
    return made.eval()


def inputs(count: int = 1) -> list[Tensor]:
    return list(torch.randn(count, ROWS, WIDTH, generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("inference", [True, False])
def test_every_byte_is_counted_and_taken_off_again(inference: bool) -> None:
    model, x, tally = network(), inputs()[0], ActivationTally()
    with torch.inference_mode(inference), Counting(tally.add):
        y = model(x)
    assert tally.peak_bytes == 2 * ONE_WIDE
    assert tally.live_bytes == ROWS * WIDTH * 4 + (0 if inference else ONE_WIDE)  # a graph keeps the ReLU's
    assert tally.live_bytes == ROWS * WIDTH * 4 + graph_bytes(y) - (0 if inference else x.nbytes)
    del y
    assert tally.live_bytes == 0


def test_views_weights_and_results_in_place_are_not_counted() -> None:
    weight, tally = nn.Parameter(torch.zeros(4, 4)), ActivationTally()
    with torch.inference_mode(), Counting(tally.add):
        seen = weight.t()
        made = torch.ones(10, 10)
        views = [made[1:], made.view(100), made.T, made.expand(5, 10, 10)]
        made.add_(1)
        made.view(100).relu_()
    assert tally.peak_bytes == 400
    del made
    assert tally.live_bytes == 400  # a view keeps it
    del views, seen
    assert tally.live_bytes == 0


def test_operators_inside_operators_are_seen() -> None:
    tally = ActivationTally()
    query = torch.ones(1, 1, 6, 4)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), Counting(tally.add):
        scaled_dot_product_attention(query, query, query)
    assert tally.peak_bytes >= 2 * 6 * 6 * 4  # the scores and their softmax, which nobody outside ever sees


def test_beyond_the_limit_it_refuses_and_counts_nothing() -> None:
    tally = ActivationTally(limit_bytes=1000)
    with Counting(tally.add):
        kept = torch.ones(200)
        with pytest.raises(torch.OutOfMemoryError, match=r"400 B of activations asked for, 800 B in use"):
            torch.ones(100)
        assert tally.live_bytes == 800
        more = torch.ones(50)
    assert tally.live_bytes == tally.peak_bytes == 1000
    del kept, more
    assert tally.live_bytes == 0


def test_each_thread_counts_for_itself() -> None:
    tally = ActivationTally()
    with Counting(tally.add):
        other = threading.Thread(target=lambda: torch.ones(10))
        other.start()
        other.join()
    assert tally.peak_bytes == 0


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_together_the_peak_is_so_many_times_one(threads: int) -> None:
    report = parallel_memory(network(), inputs(threads), threads=threads)
    assert report.one_alone_bytes == 2 * ONE_WIDE
    assert report.peak_bytes == threads * report.one_alone_bytes
    assert (report.served, report.failed) == (threads, 0)
    assert all(one.right for one in report.outcomes)


def test_a_transformer_too() -> None:
    model = tiny_llama()
    prompts = [torch.arange(20)[None], torch.arange(30)[None]]  # each is widest at a moment of its own
    one, other = (parallel_memory(model, [prompt], threads=1).peak_bytes for prompt in prompts)
    assert parallel_memory(model, prompts, threads=4).peak_bytes == 2 * (one + other)


def test_when_two_and_a_half_fit_one_of_three_fails() -> None:
    limit = 5 * ONE_WIDE
    report = parallel_memory(network(), inputs(3), threads=3, limit_bytes=limit)
    assert (report.served, report.failed) == (2, 1)
    assert report.peak_bytes <= limit
    for one in report.outcomes:
        assert one.right == one.served
        assert one.served or isinstance(one.error, torch.OutOfMemoryError)
    assert str(report).splitlines() == [
        "3 threads, with 41 kB to be had: at most 41 kB of activations at once; "
        "one request alone needs 16.4 kB.",
        "2 served, 1 failed.",
        "OutOfMemoryError: Out of memory: 8.19 kB of activations asked for, 41 kB in use, 41 kB in all. "
        "Let fewer requests run at once, or give each less to do.",
    ]


@settings(max_examples=40)
@given(threads=st.integers(1, 6), room=st.integers(0, 7 * 2 * ONE_WIDE), inference=st.booleans())
def test_together_as_many_are_served_as_fit(threads: int, room: int, inference: bool) -> None:
    report = parallel_memory(network(), inputs(2), threads=threads, limit_bytes=room, inference=inference)
    assert report.served + report.failed == threads
    assert report.served == min(threads, room // report.one_alone_bytes)
    assert report.peak_bytes <= room
    assert all(one.right for one in report.outcomes if one.served)


@settings(max_examples=20)
@given(threads=st.integers(1, 5), room=st.integers(0, 6 * 2 * ONE_WIDE))
def test_left_to_luck_nothing_is_lost_either(threads: int, room: int) -> None:
    report = parallel_memory(network(), inputs(), threads=threads, limit_bytes=room, together=False)
    assert report.served + report.failed == threads
    assert report.peak_bytes <= min(room, threads * report.one_alone_bytes)
    assert all(one.right for one in report.outcomes if one.served)
    if room >= threads * report.one_alone_bytes:
        assert report.failed == 0


class FailsAtThree(nn.Module):
    """Works alone, and fails for the third of those who come later."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.calls = 0
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.calls += 1
            call = self.calls
        if call == 2 + 3:  # two calls to measure one alone
            raise ValueError("this one is broken")
        y: Tensor = self.network(x)
        return y


def test_who_fails_for_another_reason_holds_nobody_up() -> None:
    report = parallel_memory(FailsAtThree(), inputs(), threads=4)
    assert (report.served, report.failed) == (3, 1)
    assert report.peak_bytes == 3 * report.one_alone_bytes
    assert [type(one.error) for one in report.outcomes if one.error] == [ValueError]


def test_what_fails_alone_says_why_at_once() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        parallel_memory(network(), [torch.ones(3, 3)], threads=2)
    with pytest.raises(ValueError, match="give at least one"):
        parallel_memory(network(), [], threads=2)


REAL_LIMIT = """
    import resource
    import threading
    import torch
    from servelab.memory import parallel_memory

    HUGE = 2 * 10**9  # bytes; asked for and hardly touched, so that it takes none of the machine's memory

    def model(x):
        room = torch.empty(HUGE, dtype=torch.uint8)
        room[:1] = 1
        return x + room[:1]

    class Limited:
        # Two calls measure one alone; the limit is set before any of the others allocates. When all three
        # have begun, since a new thread takes addresses, too.
        def __init__(self):
            self.calls, self.begin = 0, threading.Barrier(3, action=self.limit)

        def limit(self):
            with open("/proc/self/statm") as file:
                now = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + 5 * HUGE // 2, resource.RLIM_INFINITY))

        def __call__(self, x):
            self.calls += 1
            if self.calls > 2:
                self.begin.wait()
            return model(x)

    report = parallel_memory(Limited(), [torch.zeros(1)], threads=3)
    print(report.served, report.failed, report.peak_bytes // HUGE)
    print(*(type(one.error).__name__ for one in report.outcomes if one.error))
    print(all(one.right for one in report.outcomes if one.served))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to a limit of its addresses")
def test_a_real_allocator_that_refuses_fails_one_request() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(REAL_LIMIT)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == ["2 1 2", "RuntimeError", "True"], done.stdout + done.stderr


class LockedAtTheWidest(nn.Module):
    """No two requests can stand at their widest moments at once."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.lock = network(), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.network(x)


def test_threads_that_cannot_meet_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "PATIENCE", 0.2)
    report = parallel_memory(LockedAtTheWidest(), inputs(), threads=3)
    assert (report.served, report.together) == (3, False)
    assert parallel_memory(network(), inputs(), threads=3).together


class GoesOn(nn.Module):
    """Takes a smaller batch when it was refused."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.network(x)
        except torch.OutOfMemoryError:
            pass
        return self.network(x[:1])


def test_a_model_that_goes_on_after_a_refusal_holds_nobody_up() -> None:
    report = parallel_memory(GoesOn(), inputs(), threads=3, limit_bytes=3 * ONE_WIDE)
    assert report.served == 3
    assert not all(one.right for one in report.outcomes)


def test_a_request_that_ends_its_thread_fails_alone() -> None:
    def leaves_on_the_third(x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) == 3:  # twice alone, to look
            raise SystemExit
        return x + 1

    calls: list[Tensor] = []
    report = parallel_memory(leaves_on_the_third, inputs(), threads=2, together=False)
    assert (report.served, report.failed) == (1, 1)


def test_sparse_activations_are_counted_by_their_parts() -> None:
    report = parallel_memory(lambda x: x.to_sparse(), [torch.eye(64)], threads=1)
    assert report.one_alone_bytes >= 64 * (4 + 2 * 8)
