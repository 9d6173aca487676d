"""The take-aways of the lesson on the queue and the concurrency limit, as inequalities.

Simulated with the shipped cost model, so that no timing of the machine decides; what does not
depend on seconds is asserted in steps.
"""

import pytest

from servelab import (
    Arrival,
    Interleaved,
    Sequential,
    poisson,
    request_metrics,
    simulate,
    summary,
    users,
)
from servelab.lab.figures.load import READING_PACE

BOTH = users(
    ["What is a queue? Explain it to a child.", "Why do trains wait at signals?"], max_new_tokens=100
)


def test_a_limit_decides_whether_users_wait_before_their_answer_or_inside_it() -> None:
    """To keep, 1: a higher limit means a shorter wait for the first token and longer gaps after it."""
    workload = poisson(1.2, 60, seed=1, prompt_tokens=(8, 40), new_tokens=(20, 100))
    runs = [
        summary(simulate(workload, Interleaved(limit), max_queue_size=1000)) for limit in (1, 2, 4, 8, 16)
    ]
    ttfts = [run.ttft_median for run in runs]
    gaps = [run.itl_p95 for run in runs]
    answers = [run.e2e_median for run in runs]
    assert answers == sorted(answers)
    assert ttfts == sorted(ttfts, reverse=True)
    assert gaps == sorted(gaps)


def test_taking_turns_gives_an_early_first_word_for_a_late_last_word() -> None:
    """To keep, 2, in steps: user 2's first word, 1 for 100; user 1's last, 198 for 99."""
    one_by_one = request_metrics(simulate(BOTH, Sequential()))
    taking_turns = request_metrics(simulate(BOTH, Interleaved(2)))
    assert (one_by_one[1].token_steps[0], taking_turns[1].token_steps[0]) == (100, 1)
    assert (one_by_one[0].token_steps[-1], taking_turns[0].token_steps[-1]) == (99, 198)
    assert taking_turns[1].ttft < one_by_one[1].ttft / 10
    assert taking_turns[0].e2e > one_by_one[0].e2e * 1.8


@pytest.mark.parametrize("limit", [2, 4, 8])
def test_taking_turns_makes_nothing_faster(limit: int) -> None:
    """To keep, 2: the tokens per second stay the same whatever the limit."""
    prompts = ["Why?"] * 8
    alone = summary(simulate(users(prompts, max_new_tokens=50), Sequential()))
    together = summary(simulate(users(prompts, max_new_tokens=50), Interleaved(limit)))
    assert together.tokens_per_second == pytest.approx(alone.tokens_per_second, rel=0.01)


def test_no_limit_cures_overload() -> None:
    """Above capacity the backlog grows under every limit: the last users wait longer than the first."""
    for limit in (1, 2, 4, 8):
        overload = poisson(3.0, 60, seed=1, new_tokens=(60, 60))
        run = request_metrics(simulate(overload, Interleaved(limit), max_queue_size=1000))
        assert run[-1].e2e > 3 * run[0].e2e


def test_refusing_at_once_serves_more_users_than_letting_all_wait() -> None:
    """To keep, 3: with impatient users and too many of them, a short queue answers more people."""
    for gap in (1.2, 1.3, 1.5):
        impatient = users(["Why?"] * 20, at=[gap * n for n in range(20)], max_new_tokens=120, patience=10.0)
        room_for_all = summary(simulate(impatient, Interleaved(2), max_queue_size=1000))
        room_for_two = summary(simulate(impatient, Interleaved(2), max_queue_size=2))
        assert room_for_all.refused == 0 < room_for_two.refused
        assert room_for_two.served > 1.4 * room_for_all.served


def test_at_limit_eight_words_come_as_fast_as_one_reads_and_at_sixteen_they_do_not() -> None:
    busy = poisson(1.2, 60, seed=1, prompt_tokens=(8, 40), new_tokens=(20, 100))
    eight, sixteen = (summary(simulate(busy, Interleaved(limit), max_queue_size=1000)) for limit in (8, 16))
    assert eight.itl_p95 < READING_PACE < sixteen.itl_p95


def test_the_third_user_enters_when_the_second_is_done() -> None:
    """Row A4 of the mission, at whatever moment of the second user's answer the third arrives."""
    for late in range(1, 6):
        first_two = users(["What is a queue?", "Why do trains wait?"], max_new_tokens=[5, 3]).arrivals
        third = Arrival(0.02 * late, "Name three colours.", first_two[0].params, user="user 3")
        one, two, three = request_metrics(simulate((*first_two, third), Interleaved(2)))
        assert three.admitted == two.finished < one.finished
