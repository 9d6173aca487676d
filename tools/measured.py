"""README's tables of measured figures, written from the newest run of each benchmark in docs/measured/.

servelab bench strategies --output docs/measured     measures again (so do the others)
python tools/measured.py                             writes the tables; a test holds README to them
python tools/measured.py --picture                   makes docs/interleaving.png again, with the real model
"""

from __future__ import annotations

import sys
from pathlib import Path

from servelab.bench.harness import Run
from servelab.cli import BENCHES

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RUNS = ROOT / "docs" / "measured"
BEGIN, END = "<!-- measured: python tools/measured.py -->\n", "<!-- end of measured -->"

# What a row says, the benchmark, the beginnings of the figures' names, and their unit.
ROWS = [
    (
        "a step of SmolLM2 for 1, 8, 32, 64 users",
        "core",
        [f"SmolLM2 step, batch {n}," for n in (1, 8, 32, 64)],
        "ms",
    ),
    (
        "the least that this machine's memory and arithmetic allow",
        "core",
        [f"  the machine's limit at batch {n}" for n in (1, 8, 32, 64)],
        "ms",
    ),
    ("wall time outside the model, 32 users", "core", ["wall time outside"], "% of a step"),
    (
        "sampling 32 rows with temperature, top-k, top-p and penalty adds",
        "core",
        ["sampling 32"],
        "ms a step",
    ),
    (
        "simulated, scripted model, 32 users",
        "core",
        ["simulated, scripted model, limit 32"],
        "tokens a second",
    ),
    ("`import servelab`", "core", ["import servelab"], "s"),
    (
        "requests of four tokens: one at a time, 2 threads, pool of 2, 2 processes",
        "sharing",
        [
            "one at a time",
            "2 threads share a model, 1 core each",
            "pool of 2, shared weights",
            "2 processes",
        ],
        "a second",
    ),
    (
        "the same in batches of up to 8; and one at a time beside a thread that computed once, and sleeps",
        "sharing",
        ["one model, batches of up to 8", "beside a sleeping torch thread"],
        "a second",
    ),
    (
        "a loan from the model pool: thread alone, handed over; coroutine alone, handed over",
        "pool",
        [f"a loan, {who}, {users} for" for who in ("thread", "coroutine") for users in (1, 8)],
        "µs",
    ),
    (
        "one-shot models: CPU of the batcher for an item, 32 coroutines, 32 threads, with full batches of 32",
        "batching",
        [f"CPU for an item, full batches of 32, 32 {who}" for who in ("coroutines", "threads")],
        "µs",
    ),
    *(
        (
            f"{model}, requests a second, 95 of 100 within 50 ms: a call each, a lock, pool of 2; batcher "
            "that waits 20 ms, 5 ms, eager",
            "batching",
            [
                f"{model}, {way}: p95 within"
                for way in (
                    "a call for each request",
                    "a call for each, behind a lock",
                    "pool of 2, shared weights",
                    "batcher, waits 20 ms",
                    "batcher, waits 5 ms",
                    "batcher, eager",
                )
            ],
            "a second",
        )
        for model in ("small ViT", "MiniLM sentence embeddings")
    ),
    *(
        (
            f"{model}, the same: Ray Serve 2.60 (model in a thread, on the loop), LitServe 0.2.19; all 5 ms",
            "batching",
            [
                f"{model}, {way}"
                for way in (
                    "Ray Serve 2.60, model in a thread, waits 5 ms: p95 within",
                    "Ray Serve 2.60, model on the loop, waits 5 ms: p95 within",
                    "LitServe 0.2.19, no process between, waits 5 ms: p95 within",
                )
            ],
            "a second",
        )
        for model in ("small ViT", "MiniLM sentence embeddings")
    ),
    (
        "tokens a second lost by serving through asyncio, 1, 8, 32, 256 tasks (rounds differ by some 5 %)",
        "asyncio",
        [f"SmolLM2, {tasks} tasks" for tasks in (1, 8, 32, 256)],
        "%",
    ),
    (
        "how late a task runs beside 32 readers, 99 of 100 times: steps on the model thread, on the loop",
        "asyncio",
        [f"lag of the loop, p99, 32 tasks, steps {where}" for where in ("on the model", "on the loop")],
        "ms",
    ),
    (
        "tokens a second lost by KV memory in pages instead of slots, 32 users",
        "memory",
        ["serving32: tokens a second lost by pages"],
        "%",
    ),
    *(
        (
            f"a step for 32 users with 64, 256, 512, 1,024 tokens of text each, KV memory in {kind}",
            "memory",
            [f"a step over {keys} keys each, 32 users, {kind}" for keys in (64, 256, 512, 1024)],
            "ms",
        )
        for kind in ("slots", "pages")
    ),
    (
        "of 64 users, running at once in 100 MB: slots of 1,024 tokens, of 256, pages",
        "memory",
        [f"of 64 users, at once in 100 MB, {kind}" for kind in ("slots for 1024", "slots for 256", "pages")],
        "users",
    ),
    (
        "first token of 32 users with 300 equal tokens: computed by each, shared",
        "memory",
        [f"first token, 32 users, 300 tokens {how}" for how in ("not shared", "shared")],
        "s",
    ),
    (
        "a first batch of 32 pictures in its process: nothing before, a batch of 1 before, one of 32",
        "first_batch",
        [f"first batch of 32, {before}" for before in ("nothing", "a batch of 1", "a batch of 32")],
        "ms",
    ),
    (
        "the same traced by torch.compile: the first batch, then a first one of 4",
        "first_batch",
        ["first batch of 32, torch.compile, nothing", "a last batch of 4, torch.compile, nothing"],
        "ms",
    ),
    (
        "after batches of 32, reserved memory grows by (500 made-up networks, simulated): one item fewer; "
        "one more; one more with expandable segments",
        "first_batch",
        [
            f"made-up networks, a batch of {which}"
            for which in ("31, default", "33, default", "33, expandable")
        ],
        "% (mean)",
    ),
]


def newest(bench: str) -> Run:
    return Run.load(newest_file(bench))


def newest_file(bench: str) -> Path:
    files = RUNS.glob(f"{bench}-*.json")
    found = max(files, key=lambda file: (Run.load(file).date, file.name), default=None)
    if found is None:
        raise FileNotFoundError(
            f"{RUNS} holds no run of {bench}: servelab bench {bench} --output docs/measured"
        )
    return found


def tables() -> str:
    runs = {bench: newest(bench) for bench in BENCHES}
    return f"{_figures(runs)}\n{_strategies(runs['strategies'])}\n{_made_with(runs)}"


def _figures(runs: dict[str, Run]) -> str:
    rows = [
        f"| {what} | {', '.join(_number(runs[bench], name) for name in names)} {unit} | {bench} |"
        for what, bench, names, unit in ROWS
    ]
    return "\n".join(["| | | `servelab bench` |", "|---|---|---|", *rows, ""])


def _number(run: Run, beginning: str) -> str:
    return rounded(next(one.median for one in run.measurements if one.name.startswith(beginning)))


def rounded(value: float) -> str:
    """Two digits: more would not be the same tomorrow."""
    return f"{float(f'{value:.2g}'):,.10g}"


def _strategies(run: Run) -> str:
    """What each strategy is worth: tokens a second, and what its users saw, on both sets of requests."""
    lines = [
        "What each strategy is worth (`servelab bench strategies`): SmolLM2, 32 requests at once, answers of "
        "8 to 128 tokens, and, on the right, of 64.",
        "",
        "| | tokens/s | times the first row | for nobody | first word, s | longest gap, s "
        "| 64 each: tokens/s | times |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for mixed in (one for one in run.measurements if one.name.startswith("mixed: ")):
        strategy = mixed.name.removeprefix("mixed: ")
        uniform = run.find(f"uniform: {strategy}")
        assert uniform is not None, strategy
        seen = mixed.beside
        lines.append(
            f"| {strategy} | {mixed.median:.0f} | {seen['times one after another']:.1f} "
            f"| {seen['for nobody, %']:.0f} % | {seen['first word, s']:.2f} | {seen['longest gap, s']:.2f} "
            f"| {uniform.median:.0f} | {uniform.beside['times one after another']:.1f} |"
        )
    return "\n".join([*lines, ""])


def _made_with(runs: dict[str, Run]) -> str:
    """One line for each machine, day and commit, with the files of its values."""
    made: dict[str, list[str]] = {}
    for bench, run in runs.items():
        where = f"{run.machine}; torch {run.versions['torch']}; {run.date}, commit {run.commit}"
        made.setdefault(where, []).append(f"[{bench}](docs/measured/{newest_file(bench).name})")
    return "\n".join(f"*{', '.join(benches)}: {where}.*" for where, benches in made.items()) + "\n"


def written(readme: str) -> str:
    """README with its tables as they should be."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tables()}{END}{after}"


def picture() -> None:
    """README's picture: lesson 02's three users, of whom the third waits, with the real model."""
    import servelab as sl
    from servelab import lab

    cost = sl.CostModel()
    questions = ["What is a queue?", "Why is the sky blue?", "Name three colours."]
    three = sl.users(questions, at=[0, 0, 5 * cost.seconds(1, 50)], max_new_tokens=[4, 3, 3])
    model = sl.CausalLM.load(slots=2, context_length=256, device="cpu", progress=False)
    trace = sl.simulate(three, sl.Interleaved(2), model, cost=cost)
    says = "Two may generate: users 1 and 2 take turns, one token each.\nUser 3 enters when user 2 is done."
    lab.interleaving_timeline(trace, stop=10, says=says).save(ROOT / "docs" / "interleaving.png")


if __name__ == "__main__":
    if "--picture" in sys.argv:
        picture()
    else:
        README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
