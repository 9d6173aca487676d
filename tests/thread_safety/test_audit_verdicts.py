"""The audit's verdicts: each faulty module is caught, its twin and clean models are not, and why is said."""

from __future__ import annotations

import contextvars
import functools
import itertools
import random
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from servelab.cli import main
from servelab.thread_safety import AuditReport, Kind, Verdict, audit, specimens

MODULES = [one for one in specimens.ALL if isinstance(one.build(), nn.Module)]


def found(report: AuditReport) -> dict[str, tuple[Kind, str]]:
    """Kind and source line by path and name."""
    return {f"{one.path}.{one.name}".strip("."): (one.kind, one.source) for one in report.problems}


@pytest.mark.parametrize("specimen", MODULES, ids=lambda one: one.name)
def test_each_faulty_module_is_caught_and_its_twin_is_not(specimen: specimens.Specimen) -> None:
    inputs = specimen.inputs(2)
    assert audit(specimen.build(), *inputs).verdict is Verdict.UNSAFE
    assert audit(specimen.build_safe(), *inputs).verdict in (Verdict.SAFE, Verdict.GUARDED)


def text_model(kind: str, **more: Any) -> nn.Module:
    small = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(**small, intermediate_size=32, **more)
    return getattr(transformers, f"{kind}Model")(config).eval()


def clean_models() -> dict[str, tuple[nn.Module, Any]]:
    tokens = torch.arange(3, 11)[None]
    vision = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    images = torch.zeros(1, 3, 16, 16)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return {
        "cnn": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)), images),
        "encoder": (nn.TransformerEncoder(layer, 2), torch.zeros(1, 5, 8)),
        "lstm": (nn.LSTM(4, 5, 2, bidirectional=True), torch.zeros(6, 1, 4)),
        "attention": (nn.MultiheadAttention(8, 2), (torch.zeros(5, 1, 8),) * 3),
        "instance norm": (nn.InstanceNorm2d(3, track_running_stats=True), images),
        "spectral norm": (nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), torch.ones(1, 4)),
        "bert": (text_model("Bert"), tokens),
        "llama": (text_model("Llama", num_key_value_heads=2), tokens),
        "qwen2": (text_model("Qwen2", num_key_value_heads=2), tokens),
        "deberta": (text_model("DebertaV2", relative_attention=True), tokens),
        "gpt2": (
            transformers.GPT2LMHeadModel(
                transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2)
            ),
            tokens,
        ),
        "vit": (transformers.ViTModel(vision), {"pixel_values": images}),
    }


@pytest.mark.parametrize("name", clean_models())
def test_no_false_alarm_on_a_clean_model_in_eval(name: str) -> None:
    model, example = clean_models()[name]
    report = audit(model.eval(), example)
    assert report.verdict is Verdict.SAFE, str(report)
    assert not report.problems


SETTINGS: dict[str, dict[str, Any]] = {
    "Rwkv": {"hidden_size": 16, "num_hidden_layers": 2, "rescale_every": 1},
    "Funnel": {"d_model": 16, "block_sizes": [1, 1], "n_head": 2, "d_head": 8, "d_inner": 32},
    "CTRL": {"n_embd": 16, "n_layer": 1, "n_head": 2, "dff": 32},
    "Reformer": {
        "hidden_size": 16, "num_attention_heads": 2, "attention_head_size": 8, "feed_forward_size": 32,
        "attn_layers": ["lsh"], "axial_pos_embds": False, "max_position_embeddings": 64,
        "lsh_attn_chunk_length": 4, "num_buckets": 2, "is_decoder": False,
    },
}  # fmt: skip


@functools.cache
def faulty_report(family: str) -> AuditReport:
    """Of a model of transformers (5.23) that changes something in eval mode."""
    config = getattr(transformers, f"{family}Config")(vocab_size=60, **SETTINGS[family])
    model: nn.Module = getattr(transformers, f"{family}Model")(config)
    return audit(model.eval(), torch.arange(3, 11)[None])


LOCAL, ITS_OWN = "keep it in a local variable", "give each request a torch.Generator of its own"


@pytest.mark.parametrize(
    ("family", "name", "line", "cure"),
    [
        ("Rwkv", "layers_are_rescaled", "self.layers_are_rescaled = not self.training", LOCAL),
        ("Funnel", "pooling_mult", "self.pooling_mult = 1", LOCAL),
        ("CTRL", "pos_encoding", "self.pos_encoding = self.pos_encoding.to(", LOCAL),
        ("Reformer", "torch", "random_rotations = torch.randn(", ITS_OWN),
    ],
    ids=list(SETTINGS),
)
def test_what_transformers_changes_in_eval_is_found_with_its_line_and_cure(
    family: str, name: str, line: str, cure: str
) -> None:
    report = faulty_report(family)
    assert report.verdict is (Verdict.SUSPECT if family == "CTRL" else Verdict.UNSAFE)
    first = report.problems[0]
    assert first.name == name
    assert first.source.startswith(line)
    assert first.place.startswith(f"transformers/models/{family.lower()}/")
    assert cure in report.sentence


def test_weights_that_forward_rescales_are_each_named() -> None:
    report = faulty_report("Rwkv")
    scaled = [one.path for one in report.problems if one.kind is Kind.PARAMETER]
    parts = ("attention.output", "feed_forward.value")
    assert scaled == [f"blocks.{layer}.{part}" for layer in range(2) for part in parts]
    assert "do not train and serve with one instance" in report.sentence


def test_batch_norm_is_caught_where_no_version_counter_tells() -> None:
    norm = nn.BatchNorm1d(3)
    before = norm.running_mean._version
    norm(torch.randn(4, 3))
    assert norm.running_mean._version == before  # why contents are compared, too
    report = audit(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.randn(4, 3))
    assert found(report)["1.running_mean"] == (Kind.BUFFER, "return F.batch_norm(")
    assert "model.eval()" in report.sentence


class Faults(nn.Module):
    """One fault for each name."""

    calls = 0

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.child = nn.Linear(3, 3)
        self.seen: list[int] = []
        self.own = torch.Generator()
        self.h: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = getattr(self, self.fault)(x)
        return y

    def set_and_reset(self, x: torch.Tensor) -> torch.Tensor:
        self.h = x
        y = self.child(x) + self.h
        self.h = None
        return y

    def appends(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return x

    def writes_to_its_child(self, x: torch.Tensor) -> torch.Tensor:
        self.child.scale = float(x.sum())
        return x * self.child.scale

    def counts_for_the_class(self, x: torch.Tensor) -> torch.Tensor:
        Faults.calls += 1
        return x

    def counts_globally(self, x: torch.Tensor) -> torch.Tensor:
        global CALLS
        CALLS += 1
        return x

    def draws(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(1)

    def draws_its_own(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(1, generator=self.own)

    def edits(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


CALLS = 0


@pytest.mark.parametrize(
    ("fault", "name", "kind", "source"),
    [
        ("set_and_reset", "h", Kind.ATTRIBUTE, "self.h = x"),
        ("appends", "seen", Kind.ATTRIBUTE, "self.seen.append(len(x))"),
        ("writes_to_its_child", "child.scale", Kind.ATTRIBUTE, "self.child.scale = float(x.sum())"),
        ("counts_for_the_class", "Faults.calls", Kind.OUTSIDE, "Faults.calls += 1"),
        ("counts_globally", "CALLS", Kind.OUTSIDE, "CALLS += 1"),
        ("draws", "torch", Kind.RANDOM, "return x + torch.rand(1)"),
        ("draws_its_own", "own", Kind.ATTRIBUTE, "return x + torch.rand(1, generator=self.own)"),
        ("edits", "input", Kind.INPUT, "return x.mul_(2)"),
    ],
)
def test_a_fault_is_named_with_its_line(fault: str, name: str, kind: Kind, source: str) -> None:
    report = audit(Faults(fault).eval(), torch.randn(2, 3))
    assert report.verdict is Verdict.UNSAFE
    assert found(report)[name] == (kind, source)
    assert "test_audit_verdicts.py" in str(report)


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


def test_a_hook_that_collects_is_named_and_one_that_only_looks_is_not() -> None:
    features: dict[str, torch.Tensor] = {}

    def collect(layer: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        features["layer"] = output

    def look(layer: nn.Module, arguments: Any, output: torch.Tensor) -> None:
        assert output.shape[-1] == 3

    collecting, looking = Hooked().eval(), Hooked().eval()
    collecting.layer.register_forward_hook(collect)
    looking.layer.register_forward_hook(look)
    assert found(audit(collecting, torch.ones(1, 3)))["layer.features"][0] is Kind.HOOK
    assert audit(looking, torch.ones(1, 3)).verdict is Verdict.SAFE


class Guarded(nn.Module):
    def __init__(self, lock: Any) -> None:
        super().__init__()
        self.lock, self.calls = lock, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock: self.calls += 1  # noqa: E701  # fmt: skip
        return x


class GuardedFromOutside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock, self.inner = threading.Lock(), Faults("appends")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            return self.inner(x)


class TwoLocks(nn.Module):
    """Takes two locks in an order that depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.calls = threading.Lock(), threading.Lock(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = (self.one, self.two) if float(x.sum()) > 0 else (self.two, self.one)
        with first:
            self.calls += 1
            with second:
                self.calls += 1
        return x


class OfThreadAndContext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.here, self.context = threading.local(), contextvars.ContextVar[torch.Tensor]("x")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.here.x = x
        self.context.set(x)
        return self.here.x + self.context.get()


def test_locks_and_what_belongs_to_a_thread() -> None:
    x = torch.ones(1, 3)
    for model in (Guarded(threading.Lock()), Guarded(threading.RLock()), GuardedFromOutside()):
        report = audit(model.eval(), x)
        assert report.verdict is Verdict.GUARDED, str(report)
        assert report.interference.tried > 0
    assert audit(OfThreadAndContext().eval(), x).verdict is Verdict.SAFE
    deadlocked = audit(TwoLocks().eval(), x, -x)
    assert deadlocked.verdict is Verdict.UNSAFE
    assert "waited for each other" in deadlocked.sentence


class LockedDraw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            return x + torch.rand(1)


def test_a_lock_is_no_cure_for_a_draw_that_is_made_under_one() -> None:
    report = audit(LockedDraw().eval(), torch.ones(1, 3))
    assert report.verdict is Verdict.UNSAFE
    assert [one.guarded for one in report.problems] == [True]
    assert "give each request a torch.Generator of its own" in report.sentence
    assert "lock" not in report.sentence
    assert "pool" not in report.sentence


class LeavesSomething(LockedDraw):
    """Each call adds what the one before left, under a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.before = torch.zeros(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            y, self.before = x + self.before, x
        return y


class LockedInPieces(LockedDraw):
    """The write has a lock, and the read; but not both together."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.kept = x
        y = x * 2
        with self.lock:
            return y + self.kept


def test_cures_are_named_that_cure() -> None:
    """What a call leaves to the next one, a pool hands on as well; and a lock is there already."""
    left = audit(LeavesSomething().eval(), torch.ones(1, 3))
    assert left.interference.in_turn_too
    assert "Cure: keep it in a local variable, or pass it in and return it." in left.sentence
    pieces = audit(LockedInPieces().eval(), torch.ones(1, 3))
    assert pieces.verdict is Verdict.UNSAFE
    assert all(one.guarded for one in pieces.problems)
    assert "Cure: guard the whole call with one lock" in pieces.sentence


def test_where_nothing_is_seen_to_change_no_lock_is_advised() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.numbers = itertools.count()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + next(self.numbers)

    report = audit(Counts().eval(), torch.ones(1, 3))
    assert report.verdict is Verdict.UNSAFE
    assert report.problems == ()
    assert "look for a cache, an iterator" in report.sentence
    assert "lock" not in report.sentence


def test_forced_meetings_find_what_is_lost_and_what_is_mixed() -> None:
    counter, stash = specimens.named("counter"), specimens.named("stash")
    lost = audit(counter.build(), *counter.inputs(2))
    assert "counter was 1 instead of 2" in lost.sentence
    assert 0 < lost.interference.changed < lost.interference.tried
    mixed = audit(stash.build(), *stash.inputs(2))
    assert "another answer than alone" in mixed.sentence
    assert audit(counter.build_safe(), *counter.inputs(2)).interference.changed == 0


def test_a_text_of_one_length_may_hide_what_two_lengths_show() -> None:
    rope = specimens.named("dynamic_rope")
    short, long = sorted(rope.inputs(2), key=lambda one: one[0].shape[-1])
    assert audit(rope.build().eval(), short).verdict is Verdict.SAFE
    both = audit(rope.build().eval(), short, long)
    assert both.verdict is Verdict.UNSAFE
    assert "transformers/modeling_rope_utils.py" in str(both)
    assert "the calls it saw" in str(both)


def test_wrappers_are_named_and_not_run() -> None:
    report = audit(torch.compile(nn.Linear(3, 3).eval()), torch.ones(1, 3))
    assert report.verdict is Verdict.SUSPECT
    assert [one.kind for one in report.problems] == [Kind.WRAPPER]


def test_notes_change_no_verdict() -> None:
    report = audit(nn.Linear(3, 3), torch.ones(1, 3))
    assert report.verdict is Verdict.SAFE
    assert {one.kind for one in report.notes} == {Kind.TRAINING, Kind.GRADIENTS}
    with torch.no_grad():
        assert {one.kind for one in audit(nn.Linear(3, 3), torch.ones(1, 3)).notes} == {Kind.TRAINING}


class DrawsEverywhere(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(1) + random.random() + np.random.rand()


def test_the_model_and_the_callers_world_stay_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(4, 3)
    kept = x.clone()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(7)
    expected = (torch.rand(1), random.random(), np.random.rand())
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(7)
    trace = sys.gettrace()
    audit(model, x)
    audit(DrawsEverywhere(), x)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, kept)
    assert model.training
    assert sys.gettrace() is trace


def test_a_model_that_was_used_before_can_be_audited() -> None:
    stash = specimens.named("stash")
    used = stash.build()
    used(*stash.inputs(1)[0])
    assert used.kept is not None
    assert audit(used, *stash.inputs(2)).verdict is Verdict.UNSAFE


@pytest.mark.parametrize(
    ("model", "example", "error", "words"),
    [
        (len, [1], TypeError, "not an nn.Module"),
        (nn.Linear(3, 3), torch.ones(1, 4), ValueError, "give an input that it can compute"),
        (nn.Linear(3, 3), 5, ValueError, "give an input that it can compute"),
    ],
)
def test_what_cannot_be_audited_is_a_sentence(
    model: Any, example: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        audit(model, example)


LOCK = threading.Lock()


class LockOfTheModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with LOCK:
            self.calls += 1
        return x


def test_a_lock_that_the_audit_cannot_know_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servelab.thread_safety.explorer.scheduler.PATIENCE", 0.3)
    with pytest.raises(ValueError, match="make its locks in __init__"):
        audit(LockOfTheModule().eval(), torch.ones(1, 3))


SOURCE = """
import torch
from torch import nn

class Keeps(nn.Module):
    def forward(self, x):
        self.kept = x
        return x + self.kept

def clean():
    return nn.Linear(3, 3).eval(), torch.ones(1, 3)

def faulty():
    return Keeps().eval(), torch.ones(1, 3)

def alone():
    return nn.Linear(3, 3).eval()

example = torch.ones(1, 3)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["audited_here:clean"], 0, "SAFE"),
        (["audited_here:faulty"], 1, "self.kept = x"),
        (["audited_here:alone", "--example", "audited_here:example"], 0, "SAFE"),
        (["audited_here:alone"], 2, "name the example with --example"),
        (["audited_here:nothing"], 2, "has no nothing"),
        (["not_here:build"], 2, "is not_here.py in this folder"),
        (["audited_here"], 2, "write MODULE:NAME"),
        (["audited_here:example"], 2, "no example"),
    ],
)
def test_in_a_terminal(
    arguments: list[str],
    status: int,
    said: str,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "audited_here.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "audited_here", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert main(["audit", *arguments]) == status
    printed = capsys.readouterr()
    assert said in " ".join((printed.out + printed.err).split())
