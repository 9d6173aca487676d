"""Where a model can hide what its calls share. Each of these gives one caller another's input."""

import functools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from servelab.thread_safety import Verdict, audit

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))


class Stash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        y = x * 2
        return y + self.kept


class InAList(nn.Module):
    """A module that is not registered, so `named_modules()` does not know it, nor does `eval()` reach it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = [layer]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


class InANamespace(InAList):
    def __init__(self) -> None:
        super().__init__(Stash())
        self.layers = SimpleNamespace(inner=Stash())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers.inner(x)


class Helper:
    """Afterwards nothing is left of what it kept."""

    kept: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        self.kept = x
        y = x * 2
        y = y + self.kept
        self.kept = None
        return y


class LockedHelper(Helper):
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        with self.lock:
            self.kept = x
            y = x * 2
            return y + self.kept


class LockedCounter:
    def __init__(self) -> None:
        self.lock, self.count = threading.Lock(), 0

    def __call__(self, x: Tensor) -> Tensor:
        with self.lock:
            self.count += 1
        return x


class ShortLock(LockedHelper):
    def __call__(self, x: Tensor) -> Tensor:
        with self.lock:
            self.kept = x
        y = x * 2
        return y + self.kept


class With(nn.Module):
    def __init__(self, helper: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.helper = helper

    def forward(self, x: Tensor) -> Tensor:
        return self.helper(x)


def by_function(x: Tensor, module: Any) -> Tensor:
    module.kept = x
    y = x * 2
    y = y + module.kept
    module.kept = None
    return y


class ByAFunction(nn.Module):
    kept = None

    def forward(self, x: Tensor) -> Tensor:
        return by_function(x, self)


class OnAGrandchild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Module()
        self.child.child = nn.Module()

    def forward(self, x: Tensor) -> Tensor:
        self.child.child.kept = x
        y = x * 2
        y = y + self.child.child.kept
        del self.child.child.kept
        return y


class OnAnotherClass(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        Helper.kept = x
        y = x * 2
        return y + Helper.kept


class OnAFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        by_function.kept = x
        y = x * 2
        return y + by_function.kept


class SwapsItsWeights(nn.Module):
    """`.data` may be replaced without raising the version counter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.linear.weight.data
        self.linear.weight.data = weights * x.mean()
        y = self.linear(x)
        self.linear.weight.data = weights
        return y


MODELS: dict[str, Callable[[], nn.Module]] = {
    "module in a list": lambda: InAList(Stash()),
    "training mode in a list": lambda: InAList(nn.BatchNorm1d(3).train()),
    "module in a namespace": InANamespace,
    "helper that leaves nothing": lambda: With(Helper()),
    "helper with too short a lock": lambda: With(ShortLock()),
    "by a function": ByAFunction,
    "on a grandchild": OnAGrandchild,
    "on another class": OnAnotherClass,
    "on a function": OnAFunction,
    "swapped weights": SwapsItsWeights,
}


@pytest.mark.parametrize("name", MODELS)
def test_state_is_found_where_it_hides(name: str) -> None:
    report = audit(MODELS[name]().eval(), X)
    assert report.verdict is Verdict.UNSAFE
    assert report.problems


@pytest.mark.parametrize("helper", [LockedHelper, LockedCounter])
def test_a_helper_that_locks_rightly_is_guarded(helper: type) -> None:
    report = audit(With(helper()).eval(), X)
    assert report.verdict is Verdict.GUARDED, report.sentence


def test_an_object_that_each_call_makes_for_itself_is_no_alarm() -> None:
    assert audit(With(lambda x: Helper()(x)).eval(), X).verdict is Verdict.SAFE


# Hooks


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))


def save(store: dict[str, Tensor], module: nn.Module, given: Any, output: Tensor) -> None:
    store["features"] = output


def collecting(store: list[Tensor] | None) -> Callable[..., None]:
    def hook(module: nn.Module, given: Any, output: Tensor) -> None:
        if store is not None:
            store.append(output)

    return hook


class Extractor(nn.Module):
    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.model = model
        model[0].register_forward_hook(self.save)

    def save(self, module: nn.Module, given: Any, output: Tensor) -> None:
        self.features = output


def with_a_partial() -> nn.Module:
    model = network()
    model[0].register_forward_hook(functools.partial(save, {}))
    return model


def with_two_of_one_function() -> nn.Module:
    """Equal code, and only the first of them keeps anything."""
    model = network()
    model[0].register_forward_hook(collecting([]))
    model[2].register_forward_hook(collecting(None))
    return model


def with_the_method_of_a_module_around_it() -> nn.Module:
    return Extractor(network()).model


@pytest.mark.parametrize(
    "build", [with_a_partial, with_two_of_one_function, with_the_method_of_a_module_around_it]
)
def test_hooks_that_keep_something_are_found(build: Callable[[], nn.Module]) -> None:
    report = audit(build().eval(), X)
    assert report.verdict is Verdict.UNSAFE
    assert [one.path for one in report.problems] == ["0"]
