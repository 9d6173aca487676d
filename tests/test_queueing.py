"""The request queue against a plain model of it."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servelab import (
    Arrival,
    CostModel,
    Engine,
    QueueOrder,
    Request,
    RequestQueue,
    SamplingParams,
    ScriptedModel,
    Sequential,
    check_trace,
    simulate,
)
from servelab.trace import lifecycles


def people(names: str) -> list[Request]:
    return [Request("why?", user=name, id=f"{name}{number}") for number, name in enumerate(names)]


def filled(order: QueueOrder, requests: list[Request]) -> RequestQueue:
    queue = RequestQueue(order)
    for request in requests:
        queue.add(request)
    return queue


def test_fair_lets_users_take_turns_however_much_one_asks() -> None:
    queue = filled(QueueOrder.FAIR, people("aaaab"))
    assert [request.user for request in queue] == list("abaaa")
    queue.take(queue[0])
    assert [request.user for request in queue] == list("baaa")


def test_whoever_leaves_unserved_keeps_the_users_turn() -> None:
    queue = filled(QueueOrder.FAIR, people("aab"))
    queue.discard(queue[0])
    assert [request.user for request in queue] == list("ab")


def test_priority_serves_the_smallest_first_and_equals_in_order_of_arrival() -> None:
    requests = [
        Request("why?", priority=priority, id=str(place)) for place, priority in enumerate([2, 0, 1, 0])
    ]
    assert [request.id for request in filled(QueueOrder.PRIORITY, requests)] == ["1", "3", "2", "0"]


@given(st.sampled_from(QueueOrder), st.text("abc", max_size=12), st.data())
def test_a_queue_is_a_sequence_of_what_was_put_in_and_not_taken_out(order, names, data) -> None:
    requests = people(names)
    queue = filled(order, requests)
    gone = data.draw(st.lists(st.sampled_from(requests), unique=True)) if requests else []
    for number, request in enumerate(gone):
        (queue.take if number % 2 else queue.discard)(request)
    left = [request for request in requests if request not in gone]
    inside = list(queue)
    assert sorted(inside, key=id) == sorted(left, key=id)
    assert len(queue) == len(left)
    assert [queue[place] for place in range(len(queue))] == inside
    assert queue[:2] == inside[:2]
    assert queue[::-1] == inside[::-1]
    assert all((request in queue) == (request in left) for request in requests)
    if order is not QueueOrder.FAIR:
        assert inside == left
    by_user = defaultdict(list)
    for request in inside:
        by_user[request.user].append(request)
    assert all(mine == [one for one in left if one.user == user] for user, mine in by_user.items())


@given(st.text("abc", min_size=1, max_size=30))
def test_fair_shares_differ_by_at_most_one_while_all_have_requests(names: str) -> None:
    queue = filled(QueueOrder.FAIR, people(names))
    served: dict[str, int] = dict.fromkeys(names, 0)
    while queue and set(names) == {request.user for request in queue}:
        assert max(served.values()) - min(served.values()) <= 1
        first = queue[0]
        served[first.user] += 1
        queue.take(first)


def test_looking_past_the_end_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        RequestQueue()[0]


# -- ageing: by priority, and still nobody waits for ever -----------------------------------


def steady_urgent_load(ageing: float) -> tuple[float, list[float]]:
    """When one request of priority 5 is admitted, and when those of priority 0 arrive who overtake it."""
    urgent = [Arrival(0.2 * number, "now", SamplingParams(max_new_tokens=20)) for number in range(200)]
    patient = Arrival(1.0, "whenever", SamplingParams(max_new_tokens=20), user="patient", priority=5)
    trace = simulate(
        [*urgent, patient],
        Sequential(),
        max_queue_size=1000,
        order=QueueOrder.PRIORITY,
        ageing=ageing,
        cost=CostModel(((1, 0.02), (2, 0.02))),
    )
    check_trace(trace)
    lives = lifecycles(trace)
    mine = next(life for life in lives if life.user == "patient")
    before = [life.arrived for life in lives if life.admission < mine.admission]
    return mine.admitted - mine.arrived, before


def test_under_steady_urgent_load_only_ageing_lets_the_others_in() -> None:
    """A second of waiting is worth one priority: five seconds later nobody new overtakes it any more."""
    waited, before = steady_urgent_load(ageing=1.0)
    assert max(before) <= 1.0 + 5.0
    without, everybody = steady_urgent_load(ageing=0.0)
    assert len(everybody) == 200
    assert waited < without / 2


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 9)), min_size=1, max_size=30),
    st.floats(0.01, 10),
)
def test_nobody_is_overtaken_by_who_comes_much_later(arrived: list[tuple[float, int]], ageing: float) -> None:
    """After (difference of priorities / ageing) seconds nobody new comes before it."""
    queue = RequestQueue(QueueOrder.PRIORITY, ageing)
    for time, priority in sorted(arrived):
        request = Request("", priority=priority)
        request.arrived = time
        queue.add(request)
    served: list[Request] = []
    while queue:
        served.append(queue[0])
        queue.take(queue[0])
    for place, first in enumerate(served):
        for later in served[place + 1 :]:
            lead = (later.priority - first.priority) / ageing
            assert first.arrived <= later.arrived + lead + 1e-6


@pytest.mark.parametrize(
    ("order", "ageing", "said"),
    [
        (QueueOrder.PRIORITY, -1.0, "ageing is -1.0: use 0"),
        (QueueOrder.PRIORITY, float("nan"), "ageing is nan: use 0"),
        (QueueOrder.FIFO, 0.5, "in a fifo queue, where nobody is overtaken by priority"),
    ],
)
def test_an_ageing_that_means_nothing_is_refused(order: QueueOrder, ageing: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Engine(ScriptedModel.echo(), Sequential(), order=order, ageing=ageing)


# -- requests that change while they wait ----------------------------------------------------


@pytest.mark.parametrize("order", QueueOrder)
def test_who_changes_while_waiting_keeps_its_place_and_is_not_lost(order: QueueOrder) -> None:
    requests = people("aabc")
    queue = filled(order, requests)
    before = list(queue)
    requests[1].priority, requests[1].user = -5, "z"
    assert list(queue) == before
    assert requests[1] in queue
    queue.take(requests[1])
    queue.discard(requests[0])
    assert sorted(request.id for request in queue) == ["b2", "c3"]


def test_a_change_in_the_queue_does_not_lose_the_request_for_the_engine() -> None:
    here = Engine(ScriptedModel.echo(), Sequential(), order=QueueOrder.PRIORITY)
    one, two = (here.submit(Request("a b", SamplingParams(max_new_tokens=2))) for _ in range(2))
    two.priority = -1
    while not (one.finished and two.finished):
        here.step()
    check_trace(here.trace)
