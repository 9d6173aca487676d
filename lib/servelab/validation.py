"""Is this set-up, request or plan one that can be carried out? If not, a sentence: rule, fact, remedy.

Learners write policies and requests, so everything is checked before anything happens. Looks only; changes
nothing. What is right by itself already (the numbers of `SamplingParams`) is checked where it is made.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence

from servelab.model import KVMemory, TokenModel
from servelab.policies import Policy, StepPlan, View
from servelab.queueing import QueueOrder
from servelab.request import InvalidRequest, Prompt, Request, RequestState, SamplingParams


class InvalidPlan(ValueError):
    """A policy's plan breaks a rule. Nothing was changed; the engine goes on with the next plan."""


# -- set-ups ---------------------------------------------------------------------------


def check_policy(policy: Policy, model: TokenModel) -> None:
    """Raise TypeError for what is no policy, and ValueError for one that this model cannot follow."""
    if isinstance(policy, type):
        raise TypeError(f"{policy.__name__} is a class: make an instance, as in {policy.__name__}(...).")
    if not callable(getattr(policy, "plan", None)) or not hasattr(policy, "capacity"):
        raise TypeError(f"{policy!r} is not a policy: it needs `capacity` and `plan()`, see policies.py.")
    if not isinstance(policy.capacity, int):
        raise TypeError(f"{described(policy)}: the most requests running at once must be a whole number.")
    if not policy.capacity >= 1:
        raise ValueError(f"{described(policy)} lets {policy.capacity} requests run: let at least 1 run.")
    if policy.capacity > model.slots:
        paged = getattr(model, "memory", None) is not None
        room, bytes_of_it = ("blocks of KV memory", " (kv_bytes)") if paged else ("slots", " slots")
        raise ValueError(
            f"{described(policy)} lets {policy.capacity} requests run, but {model.name} has "
            f"{model.slots} {room}: lower the limit or load the model with more{bytes_of_it}."
        )
    wait = getattr(policy, "max_wait_time", 0.0)
    if not 0 <= wait < math.inf:
        raise ValueError(f"{described(policy)} waits {wait} s for a batch: let it wait a number from 0.")
    budget = getattr(policy, "max_tokens_per_step", None)
    if budget is not None and not budget >= policy.capacity:  # vLLM refuses it too
        raise ValueError(
            f"{described(policy)} lets {policy.capacity} requests run and computes {budget} tokens a step, "
            f"so some would run without a token: use {policy.capacity} or more, or a lower limit."
        )


def check_memory(model: TokenModel) -> None:
    """Raise ValueError for a model in whose KV memory somebody else's requests still are."""
    memory: KVMemory | None = getattr(model, "memory", None)
    if memory is not None and memory.free < memory.blocks:
        raise ValueError(
            f"{memory.blocks - memory.free} blocks of the KV memory of {model.name} are held by requests of "
            "another engine: let those end, close() that engine, or load the model again."
        )


def check_queue(max_queue_size: int, order: QueueOrder, ageing: float) -> None:
    """Raise ValueError for a request queue that could not work as asked."""
    if not max_queue_size >= 0:
        raise ValueError(f"max_queue_size is {max_queue_size}: use 0 (no waiting room) or more.")
    if not 0 <= ageing < math.inf:
        raise ValueError(f"ageing is {ageing}: use 0 (none), or how much a second of waiting is worth.")
    if ageing and order is not QueueOrder.PRIORITY:
        raise ValueError(
            f"ageing is {ageing} in a {order.value} queue, where nobody is overtaken by priority: "
            "leave it out, or use QueueOrder.PRIORITY."
        )


def described(thing: object) -> str:
    """Its repr, or its class for a learner's class without one (the default repr is an address)."""
    return type(thing).__name__ if type(thing).__repr__ is object.__repr__ else repr(thing)


# -- requests --------------------------------------------------------------------------


def check_request(request: Request, taken: Container[str]) -> None:
    """Raise InvalidRequest for one that no model could serve. taken: ids of requests that are here."""
    if not isinstance(request.user, str) or not isinstance(request.id, str):
        raise InvalidRequest(f"user {request.user!r} and id {request.id!r}: both are texts.")
    if request.state is not RequestState.NEW:
        raise InvalidRequest(f"{request.id} was submitted before: make a new Request.")
    if request.id in taken:
        raise InvalidRequest(
            f"There is a request {request.id!r} already: choose another id, or leave it empty."
        )
    if not isinstance(request.params, SamplingParams):
        raise InvalidRequest(f"params is {request.params!r}: use SamplingParams(max_new_tokens=…).")
    if not isinstance(request.cache_salt, str):
        raise InvalidRequest(f"cache_salt is {request.cache_salt!r}: use a text.")
    if not isinstance(request.priority, int):
        raise InvalidRequest(f"priority is {request.priority!r}: use a whole number.")
    check_max_queue_wait(request.max_queue_wait)
    _check_prompt(request.prompt)


def check_max_queue_wait(seconds: float | None) -> None:
    """Raise InvalidRequest for a wait that cannot be: at 0, nobody would ever be let in."""
    if seconds is not None and not (isinstance(seconds, int | float) and seconds > 0):
        raise InvalidRequest(
            f"max_queue_wait is {seconds!r}: use seconds above 0, or None to wait for as long as it takes."
        )


def _check_prompt(prompt: Prompt) -> None:
    if isinstance(prompt, str):
        return
    if isinstance(prompt, bytes | bytearray):
        raise InvalidRequest("The prompt is bytes: give a text, as in prompt.decode().")
    if not isinstance(prompt, Sequence):
        raise InvalidRequest(
            f"The prompt is {type(prompt).__name__}: give a text, a list of token ids, or chat messages."
        )
    if all(type(part) is int for part in prompt):
        return
    for number, message in enumerate(prompt, start=1):
        said = [message.get(name) for name in ("role", "content")] if isinstance(message, Mapping) else [None]
        if not all(isinstance(one, str) for one in said):
            raise InvalidRequest(
                f"Message {number} of the prompt is {message!r}: "
                'each is like {"role": "user", "content": "What is a queue?"}.'
            )


def prompt_tokens(request: Request, model: TokenModel) -> list[int]:
    """The prompt's token ids. Raises InvalidRequest unless prompt and answer fit into the context."""
    token_ids = model.encode(request.prompt)
    if not isinstance(token_ids, list):
        raise TypeError(
            f"encode() of {model.name} gave {type(token_ids).__name__}: return a list of token ids."
        )
    if not token_ids:
        raise InvalidRequest("The prompt is empty: ask something.")
    asked = request.params.max_new_tokens or 1
    if len(token_ids) + asked > model.context_length:
        raise InvalidRequest(
            f"A prompt of {len(token_ids)} tokens and an answer of {asked} or more exceed the context "
            f"of {model.context_length}: shorten the prompt or ask for fewer new tokens."
        )
    return token_ids


# -- plans -----------------------------------------------------------------------------


def check_plan(plan: StepPlan, view: View, capacity: int) -> None:
    """Raise InvalidPlan unless the plan, made of this view, keeps every rule."""
    if not isinstance(plan, StepPlan):
        raise InvalidPlan(f"plan() returned {type(plan).__name__}: return a StepPlan.")
    _check_types(plan)
    if plan.preempt:
        _check_preemptions(plan.preempt, view)
    if plan.admit:
        _check_admissions(plan.admit, view, len(view.running) - len(plan.preempt), capacity)
    _check_tokens(plan.tokens, {*view.running, *plan.admit} - {*plan.preempt}, view)
    if not view.fits(plan.tokens, plan.admit, plan.preempt):
        raise InvalidPlan(
            "The plan needs more KV memory than is free: ask view.fits(tokens, admit, preempt) before, and "
            "admit fewer, compute fewer, or preempt somebody."
        )
    if plan.paid is not None and not plan.paid >= sum(plan.tokens.values()):
        raise InvalidPlan(
            f"The plan pays for {plan.paid!r} tokens but computes {sum(plan.tokens.values())}: "
            "pay for all of them."
        )
    if not plan.tokens and not (plan.wake_at is not None and view.now < plan.wake_at < math.inf):
        raise InvalidPlan(
            "The plan computes nothing and names no later time to wake, so nobody would ever go on: "
            "give somebody a token, or set wake_at to a time after now."
        )


def _check_types(plan: StepPlan) -> None:
    for name, requests in (("admit", plan.admit), ("preempt", plan.preempt)):
        if not isinstance(requests, Sequence):
            raise InvalidPlan(f"{name} is {type(requests).__name__}: give a list of requests, also for one.")
    if not isinstance(plan.tokens, Mapping):
        raise InvalidPlan(f"tokens is {type(plan.tokens).__name__}: give a dict from request to number.")
    if not isinstance(plan.wake_at, int | float | None):
        raise InvalidPlan(f"wake_at is {plan.wake_at!r}: give a time in seconds.")
    if not isinstance(plan.paid, int | None):
        raise InvalidPlan(f"paid is {plan.paid!r}: give a whole number of tokens, or None.")


def _check_preemptions(preempt: Sequence[Request], view: View) -> None:
    if view.memory is None:
        raise InvalidPlan("The plan preempts, but everybody has a slot of their own: let them all go on.")
    for request in preempt:
        if request not in view.running:
            raise InvalidPlan(f"{_name(request)} is preempted but does not run: preempt only from `running`.")
    if len(set(preempt)) != len(preempt):
        raise InvalidPlan("The plan preempts a request twice: name each one once.")
    oldest = min(view.running, key=lambda request: request.admission)
    if oldest in preempt:
        raise InvalidPlan(
            f"{_name(oldest)} is preempted and was admitted first of all who run: let that one go on, "
            "so that somebody always comes to an end."
        )


def _check_admissions(admit: Sequence[Request], view: View, running: int, capacity: int) -> None:
    for request in admit:
        if request not in view.waiting:
            raise InvalidPlan(f"{_name(request)} is admitted but is not waiting: admit only from `waiting`.")
    if len(set(admit)) != len(admit):
        raise InvalidPlan("The plan admits a request twice: name each one once.")
    if running + len(admit) > capacity:
        raise InvalidPlan(
            f"{running} are running and only {capacity} may run, so your plan can admit "
            f"{capacity - running} at most; it admits {len(admit)}."
        )


def _check_tokens(tokens: Mapping[Request, int], may_compute: Container[Request], view: View) -> None:
    for request, count in tokens.items():
        if request not in may_compute:
            raise InvalidPlan(
                f"{_name(request)} computes without running: admit it in this plan or an earlier one."
            )
        most = request.uncomputed if view.memory is None else view.uncomputed(request)
        if type(count) is not int or not 0 < count <= most:
            raise InvalidPlan(
                f"{_name(request)} is to compute {count!r} tokens, but has {most} to compute: "
                f"plan a whole number from 1 to {most}, or leave it out to let it rest."
            )


def _name(request: Request) -> str:
    return request.id if isinstance(request, Request) else repr(request)
