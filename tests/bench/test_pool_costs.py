"""What the pool's cost is measured on: that every way is there, and every loan was made."""

from servelab.bench import pool


def test_a_number_for_each_way_alone_and_in_a_crowd(monkeypatch) -> None:
    monkeypatch.setattr(pool, "LOANS", 16)
    monkeypatch.setattr(pool, "REPEATS", 2)
    found = list(pool.pool_costs())
    assert [one.name.split(", ")[1:] for one in found] == [
        [way, f"{users} for one instance"] for way in ("thread", "coroutine", "run_async") for users in (1, 8)
    ]
    assert all(len(one.values) == 2 and one.unit == "µs" for one in found)
