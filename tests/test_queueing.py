"""The request queue against a plain model of it."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servelab import QueueOrder, Request, RequestQueue


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
