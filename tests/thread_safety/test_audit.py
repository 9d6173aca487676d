"""An audit of odd models: where state can hide, what must not alarm, and what it leaves as it was.

Verdicts of specimens and ordinary models are in test_audit_verdicts.py.
"""

from __future__ import annotations

import array
import contextvars
import dataclasses
import functools
import logging
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from servelab.thread_safety import AuditReport, Kind, Verdict, audit

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))


pytestmark = [
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning"),
]


class Model(nn.Module):
    """Does `work`, with what `made` puts on it."""

    def __init__(self, work: Callable[..., Any], made: Callable[[Any], object] | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.work = functools.partial(work)  # a function of this file, not a method
        if made is not None:
            made(self)

    def forward(self, *given: Any) -> Any:
        return self.work(self, *given)


def audited(
    work: Callable[..., Any], made: Callable[[Any], object] | None = None, example: Any = X
) -> AuditReport:
    return audit(Model(work, made).eval(), example)


def named(report: AuditReport) -> dict[str, Kind]:
    return {f"{one.path}.{one.name}".strip("."): one.kind for one in report.problems}


def put(**attributes: Any) -> Callable[[nn.Module], None]:
    def made(model: nn.Module) -> None:
        for name, value in attributes.items():
            setattr(model, name, value)

    return made


# Where state can hide.


class InSlots:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


class Counts:
    def __init__(self) -> None:
        self.n = 0

    def __call__(self, *_: Any) -> None:
        self.n += 1


class Described(nn.Module):
    @property
    def last(self) -> Tensor:
        return self._last

    @last.setter
    def last(self, value: Tensor) -> None:
        self._last = value

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        return x + self.last


class Common(nn.Module):
    calls: ClassVar[list[int]] = []
    count = 0

    @classmethod
    def counted(cls) -> None:
        cls.count += 1

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        self.counted()
        return x


counts = Counts()
BY_NAME: dict[str, int] = {}


def edit_slots(self: Any, x: Tensor) -> Tensor:
    self.kept.n += 1
    return x


def edit_first(self: Any, x: Tensor) -> Tensor:
    self.kept[0] += 1
    return x


def edit_last(self: Any, x: Tensor) -> Tensor:
    self.kept[-1] = [7]
    return x


def edit_entry(self: Any, x: Tensor) -> Tensor:
    self.kept["calls"] = self.kept.get("calls", 0) + 1
    return x


def call_kept(self: Any, x: Tensor) -> Tensor:
    self.kept(1)
    return x


def count_globally(self: Any, x: Tensor) -> Tensor:
    counts()
    return x


def count_by_name(self: Any, x: Tensor) -> Tensor:
    BY_NAME["calls"] = BY_NAME.get("calls", 0) + 1
    return x


def edit_weight(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        self.linear.weight.add_(1)
    return x


def edit_data(self: Any, x: Tensor) -> Tensor:
    self.linear.weight.data.add_(1)  # counts no version
    return x


def seed_and_draw(self: Any, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return x + torch.rand(1)


def write_in_generator(self: Any, x: Tensor) -> Any:
    def parts() -> Any:
        for number in range(3):
            self.number = number
            yield x * self.number

    return sum(parts())


def write_in_own_thread(self: Any, x: Tensor) -> Tensor:
    def work() -> None:
        self.n = len(x)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return x


@torch.inference_mode()
def write_in_inference_mode(self: Any, x: Tensor) -> Tensor:
    self.kept = x * 2
    return x + self.kept


HIDING: dict[str, tuple[Callable[..., Any], Callable[[Any], object] | None]] = {
    "slots": (edit_slots, put(kept=InSlots())),
    "numpy": (edit_first, put(kept=np.zeros(3))),
    "bytes": (edit_first, put(kept=bytearray(3))),
    "array": (edit_first, put(kept=array.array("i", [0]))),
    "a large list": (edit_last, put(kept=[0] * 1_000)),
    "a dict entry": (edit_entry, put(kept={})),
    "a method of a list": (call_kept, put(kept=[].append)),
    "a partial": (call_kept, put(kept=functools.partial(list.append, []))),
    "an object that is called": (call_kept, put(kept=Counts())),
    "a global object that is called": (count_globally, None),
    "a global dict": (count_by_name, None),
    "a weight": (edit_weight, None),
    "the data of a weight": (edit_data, None),
    "a fixed seed": (seed_and_draw, None),
    "nothing but a seed": (lambda self, x: (torch.manual_seed(0), x)[1], None),
    "random": (lambda self, x: x + random.random(), None),
    "numpy.random": (lambda self, x: x + np.random.rand(), None),
    "dropout that is always on": (lambda self, x: nn.functional.dropout(x, 0.5), None),
    "a generator": (write_in_generator, None),
    "its own thread": (write_in_own_thread, None),
    "inference mode": (write_in_inference_mode, None),
}


@pytest.mark.parametrize("place", HIDING)
def test_state_is_found_wherever_it_is_kept(place: str) -> None:
    report = audited(*HIDING[place])
    assert report.verdict is Verdict.UNSAFE
    assert report.problems


def test_state_of_a_property_and_of_a_class() -> None:
    assert named(audit(Described().eval(), X))["_last"] is Kind.ATTRIBUTE
    report = audit(Common().eval(), X)
    assert named(report)["Common.calls"] is named(report)["Common.count"] is Kind.OUTSIDE
    assert "self.calls.append(1)" in [one.source for one in report.problems]


def test_edited_data_of_a_small_weight_is_found_at_its_line_and_of_a_large_one_at_all() -> None:
    (small,) = audited(edit_data).problems
    assert small.source == "self.linear.weight.data.add_(1)  # counts no version"
    large = Model(edit_data, put(linear=nn.Linear(100, 100)))
    assert named(audit(large.eval(), X)) == {"linear.weight": Kind.PARAMETER}


def test_variables_around_a_method_and_its_defaults() -> None:
    kept: list[int] = []

    class Around(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept.append(1)
            return x

    class Default(nn.Module):
        def forward(self, x: Tensor, kept: list[int] = []) -> Tensor:  # noqa: B006
            kept.append(1)
            return x

    assert named(audit(Around().eval(), X)) == {"kept": Kind.OUTSIDE}
    assert named(audit(Default().eval(), X)) == {"defaults of forward": Kind.OUTSIDE}


def test_hooks_that_are_objects_or_write_on_the_layer() -> None:
    collecting, marking = (Model(lambda self, x: self.linear(x)).eval() for _ in range(2))
    collecting.linear.register_forward_hook(Counts())
    marking.linear.register_forward_pre_hook(lambda layer, given: setattr(layer, "mark", given))
    assert named(audit(collecting, X)) == {"linear.Counts": Kind.HOOK}
    assert named(audit(marking, X)) == {"linear.mark": Kind.ATTRIBUTE}


def test_the_generator_of_a_call_is_no_state_and_the_models_own_is() -> None:
    def draw(self: Any, x: Tensor, lots: torch.Generator) -> Tensor:
        return x + torch.rand(1, generator=lots)

    assert audited(draw, example=(X, torch.Generator())).verdict is Verdict.SAFE


def test_an_edited_input_is_no_state_of_the_model() -> None:
    report = audited(lambda self, x: x.mul_(2))
    assert report.verdict is Verdict.UNSAFE
    assert not report.interference.in_turn_too
    assert report.interference.changed > 0  # for somebody who was given the same one
    assert named(report) == {"input": Kind.INPUT}


def test_what_is_replaced_by_something_equal_is_a_suspicion() -> None:
    model = nn.utils.spectral_norm(nn.Linear(3, 3)).eval()
    model(X)
    report = audit(model, X)
    assert report.verdict is Verdict.SUSPECT
    assert named(report) == {"weight": Kind.REWRITTEN}
    assert "torch/nn/utils/spectral_norm.py" in str(report)


def test_a_second_call_that_fails_is_a_verdict_and_no_traceback() -> None:
    def only_once(self: Any, x: Tensor) -> Tensor:
        if self.used:
            raise RuntimeError("used up")
        self.used = True
        return x

    report = audited(only_once, put(used=False))
    assert report.verdict is Verdict.UNSAFE
    assert report.interference.in_turn_too
    assert named(report) == {"used": Kind.ATTRIBUTE}


def test_swin_shifts_its_windows_no_more_once_it_has_seen_a_small_picture() -> None:
    """SwinLayer.set_shift_and_window_size writes on the layer (transformers 5.23) for good."""
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[2], num_heads=[2], window_size=4
    )
    small, large = ({"pixel_values": PICTURE[..., :size, :size]} for size in (16, 32))
    torch.manual_seed(3)
    model = transformers.SwinModel(config).eval()
    assert audit(model, large).verdict is Verdict.SAFE
    report = audit(model, large, small)
    assert report.verdict is Verdict.UNSAFE
    assert report.interference.in_turn_too
    assert "encoder.layers.0.blocks.1.shift_size" in named(report)
    assert "transformers/models/swin/modeling_swin.py" in str(report)


def test_a_long_text_that_leaves_something_behind_is_found_in_whichever_order() -> None:
    def remember(self: Any, x: Tensor) -> Tensor:
        self.longest = max(self.longest, x.shape[-1])
        return x * self.longest

    for pair in ((X, torch.ones(2, 5)), (torch.ones(2, 5), X)):
        model = Model(remember, put(longest=3)).eval()
        assert audit(model, *pair).interference.in_turn_too


# Locks of all forms.


class Many(nn.Module):
    def __init__(self, lock: Any) -> None:
        super().__init__()
        self.lock, self.n, self.by_name = lock, 0, {"n": 0}


class OverSeveralLines(Many):
    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.n += 1
            self.by_name["n"] = self.n
        return x


class AcquireAndRelease(Many):
    def forward(self, x: Tensor) -> Tensor:
        self.lock.acquire()
        try:
            self.n += 1
        finally:
            self.lock.release()
        return x


class InTwoSections(Many):
    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            seen = self.n
        with self.lock:
            self.n = seen + 1
        return x


class ALockOfTheCall(Many):
    def forward(self, x: Tensor) -> Tensor:
        with threading.Lock():
            self.n += 1
        return x


class OnceWithoutTheLock(Many):
    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.n += 1
        self.n += 2
        return x


def test_of_several_lines_the_one_without_a_lock_is_named() -> None:
    report = audit(OnceWithoutTheLock(threading.Lock()).eval(), X)
    assert report.verdict is Verdict.UNSAFE
    assert [(one.source, one.guarded) for one in report.problems] == [("self.n += 2", False)]


LOCKS = (threading.Lock, threading.RLock, threading.Condition, lambda: threading.Semaphore(1))


@pytest.mark.parametrize("lock", LOCKS, ids=["lock", "rlock", "condition", "semaphore"])
@pytest.mark.parametrize("form", [OverSeveralLines, AcquireAndRelease])
def test_whatever_lets_in_one_at_a_time_is_a_guard(form: type[Many], lock: Callable[[], Any]) -> None:
    report = audit(form(lock()).eval(), X)
    assert report.verdict is Verdict.GUARDED, str(report)
    assert report.interference.tried > 0
    assert report.interference.changed == 0


def test_a_lock_that_guards_nothing_is_none() -> None:
    for model in (
        InTwoSections(threading.Lock()),
        ALockOfTheCall(None),
        OverSeveralLines(threading.Semaphore(2)),
    ):
        assert audit(model.eval(), X).verdict is Verdict.UNSAFE
    assert "n was 1 instead of 2" in audit(InTwoSections(threading.Lock()).eval(), X).sentence


# What must not alarm.


@dataclasses.dataclass(slots=True, frozen=True)
class Answer:
    y: Tensor


@functools.lru_cache
def table(length: int) -> Tensor:
    return torch.arange(length)


log = logging.getLogger(__name__)
scale: contextvars.ContextVar[float] = contextvars.ContextVar("scale")


def logs(self: Any, x: Tensor) -> Tensor:
    log.debug("computing %s", x.shape)
    return x


def keeps_locally(self: Any, x: Tensor) -> Tensor:
    kept: list[Tensor] = []
    count = 0

    def keep(y: Tensor) -> None:
        nonlocal count
        count += 1
        kept.append(y)

    keep(x)
    keep(x)
    return kept[0] * count


def recursion(self: Any, x: Tensor, depth: int = 3) -> Tensor:
    return x if depth == 0 else recursion(self, self.linear(x), depth - 1)


def own_threads(self: Any, x: Tensor) -> Any:
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(self.linear, [x, x]))


def modes(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu"):
        return self.linear(x).float()


def in_context(self: Any, x: Tensor) -> Tensor:
    scale.set(2.0)
    return x * scale.get()


@torch.inference_mode()
def in_inference_mode(self: Any, x: Tensor) -> Tensor:
    return self.linear(x)


def knows_its_parent(model: Any) -> None:
    model.linear.__dict__["parent"] = model
    model.around = [model]


def contains_itself(model: Any) -> None:
    model.settings = {}
    model.settings["all"] = [model.settings] * 3


CLEAN: dict[str, tuple[Callable[..., Any], Callable[[Any], object] | None]] = {
    "a logger": (logs, None),
    "local variables around a function": (keeps_locally, None),
    "recursion": (recursion, None),
    "threads of its own": (own_threads, None),
    "modes": (modes, None),
    "a context variable": (in_context, None),
    "inference mode": (in_inference_mode, None),
    "lru_cache": (lambda self, x: x + table(3), None),
    "a frozen dataclass": (lambda self, x: Answer(x), None),
    "a generator made in the call": (lambda self, x: x + np.random.default_rng(0).random(), None),
    "dropout": (lambda self, x: nn.functional.dropout(x, 0.5, training=self.training), None),
    "checkpointing": (
        lambda self, x: torch.utils.checkpoint.checkpoint(self.linear, x, use_reentrant=False),
        None,
    ),
    "its parent": (lambda self, x: self.linear(x), knows_its_parent),
    "itself": (lambda self, x: self.linear(x), contains_itself),
    "ten thousand entries": (lambda self, x: x, put(kept={n: {"n": [n]} for n in range(10_000)})),
    "nothing but NaN": (lambda self, x: x * float("nan"), None),
}


@pytest.mark.parametrize("what", CLEAN)
def test_what_belongs_to_one_call_does_not_alarm(what: str) -> None:
    report = audited(*CLEAN[what])
    assert report.verdict is Verdict.SAFE, str(report)


class Twice(nn.Module):
    """The same layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.other = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x))


def with_buffer(buffer: Tensor) -> nn.Module:
    model = Model(lambda self, x: x)
    model.register_buffer("kept", buffer)
    return model


TENSORS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "shared layer": lambda: (Twice(), X),
    "weight norm": lambda: (nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), X),
    "bfloat16": lambda: (nn.Linear(3, 3).bfloat16(), X.bfloat16()),
    "half": lambda: (nn.Linear(3, 3).half(), X.half()),
    "complex": lambda: (nn.Linear(3, 3).to(torch.cfloat), X.to(torch.cfloat)),
    "meta": lambda: (nn.Linear(3, 3, device="meta"), X.to("meta")),
    "empty": lambda: (nn.Linear(3, 3), X[:0]),
    "scalar": lambda: (Model(lambda self, x: x * 2), torch.tensor(1.0)),
    "bool": lambda: (Model(lambda self, x: ~x), torch.tensor([True])),
    "text": lambda: (Model(lambda self, x: X), "hello"),
    "nothing": lambda: (Model(lambda self, x, y: x), (X, None)),
    "list": lambda: (Model(lambda self, some: some[0]), [X, X]),
    "requires grad": lambda: (nn.Linear(3, 3), X.clone().requires_grad_()),
    "with a graph": lambda: (nn.Linear(3, 3), X.clone().requires_grad_() * 2),
    "of inference": lambda: (nn.Linear(3, 3), torch.inference_mode()(X.clone)()),
    "sparse": lambda: (Model(lambda self, x: torch.sparse.mm(x, torch.ones(3, 3))), X.to_sparse()),
    "jagged": lambda: (
        Model(lambda self, x: x),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    ),
    "sparse buffer": lambda: (with_buffer(torch.eye(2).to_sparse()), X),
    "float8 buffer": lambda: (with_buffer(torch.zeros(3).to(torch.float8_e4m3fn)), X),
    "quantized buffer": lambda: (
        with_buffer(torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
        X,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_all_kinds(kind: str) -> None:
    model, example = TENSORS[kind]()
    report = audit(model.eval(), example)
    assert report.verdict is Verdict.SAFE, str(report)


def test_edited_buffers_of_odd_kinds_are_found() -> None:
    ones, twice = torch.ones(3, dtype=torch.bfloat16), "kept.mul_(2)"
    for buffer, how in ((torch.eye(2).to_sparse(), twice), (ones, twice), (ones, "kept.data.mul_(2)")):
        model = Model(lambda self, x, edit=how: (eval(f"self.{edit}"), x)[1])
        model.register_buffer("kept", buffer)
        assert named(audit(model.eval(), X)) == {"kept": Kind.BUFFER}


@pytest.mark.filterwarnings("ignore")
def test_scripted_and_quantized_models_are_clean() -> None:
    layers = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval()
    for model in (
        torch.jit.script(layers),
        torch.jit.trace(layers, X),
        torch.ao.quantization.quantize_dynamic(layers),
    ):
        report = audit(model, X)
        assert report.verdict is Verdict.SAFE, str(report)


def test_a_lazy_layer_is_found_out_before_its_first_call_and_clean_after() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU()).eval()
    report = audit(model, X)
    assert report.verdict is Verdict.UNSAFE
    assert named(report)["0.weight"] is Kind.PARAMETER
    assert nn.parameter.is_lazy(model[0].weight)
    model(X)
    assert audit(model, X).verdict is Verdict.SAFE


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TOKENS = torch.arange(3, 11)[None]
PICTURE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
FAMILIES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "DistilBert": ("DistilBertModel", {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}, TOKENS),
    "Qwen3": ("Qwen3Model", {**SMALL, "num_key_value_heads": 2, "head_dim": 8}, TOKENS),
    "Mistral": ("MistralModel", {**SMALL, "num_key_value_heads": 2}, TOKENS),
    "Roberta": ("RobertaModel", SMALL, TOKENS),
    "T5": ("T5EncoderModel", {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}, TOKENS),
    "ResNet": ("ResNetModel", {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}, PICTURE),
    "ConvNext": ("ConvNextModel", {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2}, PICTURE),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_false_alarm_on_more_families_of_transformers(family: str) -> None:
    kind, settings, example = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**({"vocab_size": 60} | settings))
    report = audit(getattr(transformers, kind)(config).eval(), example)
    assert report.verdict is Verdict.SAFE, str(report)


# What it leaves as it was, and what it says when it cannot.


def test_nothing_of_the_model_changes() -> None:
    model = Model(lambda self, x: self.linear(x).sum(), put(kept=[1], here=threading.local())).train()
    model.linear.eval()
    model.linear.register_forward_hook(lambda *_: None)
    model(X).backward()
    grads = [one.grad for one in model.parameters()]
    versions = [one._version for one in model.parameters()]
    attributes, hooks = dict(vars(model)), dict(model.linear._forward_hooks)
    audit(model, X)
    assert all(one.grad is grad for one, grad in zip(model.parameters(), grads, strict=True))
    assert versions == [one._version for one in model.parameters()]
    assert vars(model) == attributes
    assert dict(model.linear._forward_hooks) == hooks
    assert (model.training, model.linear.training) == (True, False)


def test_the_modes_of_the_caller_are_kept_and_passed_on() -> None:
    seen: set[tuple[bool, bool]] = set()

    def look(self: Any, x: Tensor) -> Tensor:
        seen.add((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        self.calls += 1  # so that two calls are made to meet, in threads
        return x

    with torch.inference_mode():
        assert audited(look, put(calls=0)).interference.tried > 0
        assert torch.is_inference_mode_enabled()
    assert seen == {(False, True)}
    audited(look, put(calls=0))
    assert seen == {(False, True), (True, False)}
    assert torch.is_grad_enabled()


def test_a_debuggers_trace_function_is_put_back() -> None:
    def trace(*_: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        audited(edit_slots, put(kept=InSlots()))
        during = sys.gettrace()
        with pytest.raises(ValueError, match="give an input"):
            audited(lambda self, x: 1 / 0)
        after = sys.gettrace()
    finally:
        sys.settrace(before)
    assert during is after is trace


def test_two_audits_say_the_same() -> None:
    said = {str(audited(work, made)) for _ in range(2) for work, made in [HIDING["a dict entry"]]}
    assert len(said) == 1


def test_stopping_an_audit_stops_it() -> None:
    def stop(self: Any, x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    before = sys.gettrace()
    with pytest.raises(KeyboardInterrupt):
        audited(stop)
    assert sys.gettrace() is before


@pytest.mark.parametrize(
    ("kept", "words"), [((n for n in range(3)), "cannot pickle 'generator'"), (sys.stdout, "cannot pickle")]
)
def test_a_model_that_cannot_be_copied_is_a_sentence(kept: Any, words: str) -> None:
    with pytest.raises(TypeError, match=f"This Model cannot be copied .*{words}"):
        audited(lambda self, x: x, put(kept=kept))


def test_another_input_that_cannot_be_computed_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="give an input that it can compute"):
        audit(nn.Linear(3, 3).eval(), X, torch.ones(1, 4))


@pytest.mark.parametrize("wrapper", [nn.DataParallel, torch.compile])
def test_wrappers_are_a_suspicion_at_any_depth(wrapper: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrapper(nn.Linear(3, 3).eval())
    report = audit(wrapped.eval(), X)
    assert report.verdict is Verdict.SUSPECT
    assert [one.kind for one in report.problems] == [Kind.WRAPPER]


class CountsLooks(dict[str, int]):
    """Counts how often somebody looks at what is in it."""

    looks = 0

    def items(self) -> Any:
        CountsLooks.looks += 1
        return super().items()


class OneAfterTheOther(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("kind", [nn.Sequential, OneAfterTheOther])
def test_time_stays_proportional_to_the_model(kind: type[nn.Module]) -> None:
    """Each line looks at its own module and its children, not at all modules there are."""

    def looks(depth: int) -> int:
        layers = [nn.Linear(3, 3) for _ in range(depth)]
        for layer in layers:
            layer.settings = CountsLooks(a=1)
        CountsLooks.looks = 0
        audit(kind(*layers).eval(), X)
        return CountsLooks.looks

    assert 0 < looks(20) < looks(40) < 2.5 * looks(20) + 200


class Ward(nn.Module):
    """Three faults in one: a BatchNorm, which training mode changes, a counter, and an input put aside."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.kept = x
        return self.linear(self.norm(x)).relu() + self.kept


def test_cures_name_the_findings_they_are_for() -> None:
    """eval() alone does not cure what forward itself writes."""
    report = audit(Ward().train(), torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert "Cures: for 3, 4, 5, call model.eval() once" in report.sentence
    assert "for 1, 2, keep it in a local variable" in report.sentence
    one = audit(Ward().eval(), torch.ones(2, 4))
    assert "Cure: keep it in a local variable" in one.sentence
