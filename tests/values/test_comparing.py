"""How two values are compared: to the last number, whatever they are nested in and however it is kept."""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from servelab.values.comparing import alike, differences, leaves

X = torch.arange(1.0, 7.0).reshape(2, 3)
TOLERANCE = 1e-5


@dataclass
class Pair:
    left: Any
    right: Any


@dataclass(slots=True, frozen=True)
class Answer:
    y: Tensor


def nested(last: float) -> Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.tensor([1.0, 2.0, last])])


def quantized(scale: float) -> Tensor:
    return torch.quantize_per_tensor(X * scale, 0.1, 0, torch.qint8)


@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5), data=st.data())
def test_a_changed_number_is_found_where_it_is(values: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(values) - 1))
    changed = torch.tensor(values, dtype=torch.float64)
    changed[place] += 2 + abs(values[place])
    (found,) = differences([Pair(1, changed)], [Pair(1, torch.tensor(values, dtype=torch.float64))], 1e-5)
    assert found.path == f"[0].right[{place}]"
    assert found.largest == pytest.approx(2 + abs(values[place]))
    assert not found.tolerated


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.tensor([math.nan]), torch.tensor([0.0])),
        ([1], [1, 2]),
        ("a", "b"),
        (None, 0),
        ({"a": 1}, {"b": 1}),
    ],
)
def test_what_cannot_be_subtracted_differs_without_measure(left: Any, right: Any) -> None:
    found = differences(left, right, 1e-5)
    assert found
    assert all(one.largest == math.inf and not one.tolerated for one in found)
    assert differences(left, left, 0) == []


def test_what_contains_itself_is_read_once() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert leaves(loop) == {"[0]": 1}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (X, X + 1e-7, True),
        (X, X + 1, False),
        (X, X + 1e-4, False),
        (1e6 * X, 1e6 * X + 1, True),  # above 1 the tolerance is relative
        (X, X.double(), False),
        (X, X[:1], False),
        (X * math.nan, X * math.nan, True),
        (X.to_sparse(), X.to_sparse(), True),
        (X.to_sparse(), (X * 2).to_sparse(), False),
        (nested(3.0), nested(3.0), True),
        (nested(3.0), nested(4.0), False),
        (quantized(1.0), quantized(1.0), True),
        (quantized(1.0), quantized(2.0), False),
        (X.to(torch.float8_e4m3fn), X.to(torch.float8_e4m3fn), True),
        (X.to(torch.float8_e4m3fn), (2 * X).to(torch.float8_e4m3fn), False),
        (X.bfloat16(), X.bfloat16(), True),
        (X.to("meta"), X.to("meta"), True),
        (X.to("meta"), X[:1].to("meta"), False),
        (X.clone().requires_grad_() * 2, X * 2, True),
        ({"a": X}, {"a": X}, True),
        ({"a": X}, {"b": X}, False),
        ([X], [X, X], False),
        ((1, "a"), (1, "b"), False),
        (1.5, 1.5, True),
        (math.nan, math.nan, True),
        (np.zeros(2), np.ones(2), False),
        (np.float32(1.5), np.float32(1.5), True),
        (np.float32(1.5), np.float32(2.5), False),
        ([np.int64(1)], [np.int64(2)], False),
        (np.array(["cat", "dog"]), np.array(["cat", "dog"]), True),
        (np.array(["cat", "dog"]), np.array(["cat", "cow"]), False),
        (np.array([None, 1]), np.array([None, 2]), False),
        (bytearray(b"a"), bytearray(b"b"), False),
        (Decimal(1), Decimal(2), False),
        (Answer(X), Answer(X), True),
        (Answer(X), Answer(X + 1), False),
        (object(), object(), True),
        (None, X, False),
    ],
)
def test_answers_are_compared_to_the_last_number(one: Any, other: Any, same: bool) -> None:
    assert alike(one, other, TOLERANCE) is same
    assert alike(other, one, TOLERANCE) is same


def test_sparse_outputs_of_inference_are_compared_outside_it() -> None:
    with torch.inference_mode():
        one, other = X.to_sparse_csr(), (2 * X).to_sparse_csr()
    assert alike(one, one, TOLERANCE)
    assert not alike(one, other, TOLERANCE)
