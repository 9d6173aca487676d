"""Imports run one way: core → models → serving → lab. Read from the source, and tried in a bare interpreter.

The layers are those of docs/architecture.md. `core` is the files at the root (but cli.py) and trace/.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LIB = Path(__file__).resolve().parents[1] / "lib"
PACKAGE = LIB / "servelab"

MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "values": set(),
    "models": {"core"},
    "pool": {"core", "values"},
    "batching": {"core", "values"},
    "thread_safety": {"core", "values"},
    "memory": {"core", "values"},
    "serving": {"core", "models"},
    "load": {"core", "models", "serving"},
    "bench": {"core", "values", "models", "pool", "batching", "thread_safety", "memory", "serving", "load"},
}
ANYTHING = {"lab", "cli"}
ENGINE = {"servelab.engine", "servelab.drivers", "servelab.policies"}
WITHOUT_THE_ENGINE = {"pool", "batching", "thread_safety", "memory"}
IN_FUNCTIONS = {"numpy", "pandas", "tqdm"}  # what the core may use where it is there


def layer(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1 or parts[1] == "trace":
        return "core"
    path = PACKAGE / parts[1]
    return parts[1] if path.is_dir() or parts[1] == "cli" else "core"


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(LIB).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Every module that is imported, and whether only when a function is called."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in names if _is_module(name)}
            yield from (
                (name, inside) for name in sorted(modules | ({node.module} if names - modules else set()))
            )
        elif not _is_type_checking(node):
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, inside or function)


def _is_module(name: str) -> bool:
    place = LIB.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").exists()


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def breaches(source: str, module: str) -> list[str]:
    """What a module imports and may not."""
    here = layer(module)
    found = []
    for name, inside in imports(ast.parse(source)):
        top = name.partition(".")[0]
        if top != "servelab":
            foreign = here == "core" and top not in sys.stdlib_module_names
            if foreign and not (inside and top in IN_FUNCTIONS):
                found.append(f"{module} imports {name}")
        elif here not in ANYTHING:
            there = layer(name)
            allowed = there == here or there in MAY_IMPORT[here]
            if not allowed or (here in WITHOUT_THE_ENGINE and name in ENGINE):
                found.append(f"{module} imports {name}")
        elif here == "cli" and not inside and layer(name) != "core":
            found.append(f"{module} imports {name} before it is asked to")
    return found


def test_imports_run_one_way() -> None:
    sources = sorted(PACKAGE.rglob("*.py"))
    assert len(sources) > 50
    assert [
        breach for path in sources for breach in breaches(path.read_text(encoding="utf-8"), name_of(path))
    ] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("servelab.engine", "import torch"),
        ("servelab.engine", "def f():\n    import torch"),
        ("servelab.metrics", "import numpy"),
        ("servelab.trace.check", "from servelab.models import sampling"),
        ("servelab.models.attention", "from servelab.lab.figures import palette"),
        ("servelab.models.attention", "def f():\n    from servelab.lab import doctor"),
        ("servelab.values.copying", "from servelab.request import Request"),
        ("servelab.pool.pool", "from servelab.engine import Engine"),
        ("servelab.pool.pool", "import servelab.models.causal_lm"),
        ("servelab.thread_safety.hammer", "from servelab import pool"),
        ("servelab.bench.core", "class A:\n    from servelab.lab import knobs"),
        ("servelab.cli", "from servelab.lab import doctor"),
    ],
)
def test_a_breach_is_found(module: str, source: str) -> None:
    assert len(breaches(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("servelab.cost", "def fit():\n    import numpy as np"),
        ("servelab.metrics", "if TYPE_CHECKING:\n    import pandas as pd"),
        (
            "servelab.pool.pool",
            "from servelab.queueing import QueueFull\nimport servelab.values.copying",
        ),
        ("servelab.lab.demo", "import rich\nfrom servelab.models.causal_lm import CausalLM"),
        ("servelab.cli", "def _doctor():\n    from servelab.lab import doctor"),
    ],
)
def test_what_is_allowed_is_not_called_a_breach(module: str, source: str) -> None:
    assert breaches(source, module) == []


# -- tried ---------------------------------------------------------------------------------


def bare(code: str) -> str:
    """Run code in an interpreter that has the standard library and this package, nothing else."""
    program = f"import sys\nsys.path.append({str(LIB)!r})\n{code}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


CORE = """
import tempfile, pathlib
import servelab as sl
from servelab.trace import lifecycles, queue_lengths, to_perfetto
people = sl.poisson(2.0, 60, seed=1, patience=20.0)
folder = pathlib.Path(tempfile.mkdtemp())
policies = [sl.Sequential(), sl.Interleaved(3), sl.StaticBatch(4), sl.DynamicBatch(4), sl.Continuous(8, 16)]
for policy in policies:
    trace = sl.simulate(people, policy, max_queue_size=5, order=sl.QueueOrder.FAIR)
    sl.check_trace(trace)
    assert sl.Trace.load(trace.save(folder / "trace")) == trace
    to_perfetto(trace, folder / "perfetto.json")
    print(sl.summary(trace), sl.goodput(trace, sl.ServiceLevel(ttft=1.0)))
    print(queue_lengths(lifecycles(trace))[-1])
print(sl.replay(sl.users(["a", "b"]), sl.Continuous(2), sl.ScriptedModel.echo(), progress=False))
print(*sys.modules)
"""


def test_the_core_runs_on_the_standard_library_alone() -> None:
    said = bare(CORE)
    assert said.count("Summary(") == 5
    loaded = {name.partition(".")[0] for name in said.splitlines()[-1].split()}
    assert loaded - set(sys.stdlib_module_names) - {"servelab", "__main__", "sitecustomize"} == set()


PACKAGES = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "lab"])
def test_a_package_is_imported_where_there_is_no_torch(package: str) -> None:
    """What it has of torch is imported when it is first used."""
    code = f"import sys; sys.modules['torch'] = None; import servelab.{package}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["servelab.lab", "servelab.lab.exercises.queue_and_concurrency_limit"])
def test_a_lesson_and_the_check_of_an_exercise_begin_without_torch(module: str) -> None:
    """Learners wait for every check, which starts a Python of its own."""
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "torch" not in loaded.split()


HEAVY = ["torch", "transformers", "asyncio", "IPython", "ipywidgets", "matplotlib", "pandas", "numpy", "tqdm"]


@pytest.mark.parametrize("heavy", HEAVY)
def test_importing_servelab_is_light(heavy: str) -> None:
    """Even where all of them are installed."""
    code = "import sys, servelab; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert heavy not in loaded.split()
