"""One set of versions, written down three times: pyproject.toml, constraints.txt, environment.yml.

Checked without a network, so not whether conda can solve its file, only that it says the same as the
other two in a spelling that conda's own parser accepts.
"""

from __future__ import annotations

import ast
import copy
import runpy
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rattler import MatchSpec

from servelab.bench.batching import PEERS
from servelab.lab import doctor
from servelab.lab.editions.bundle import pins_of

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
PINS = pins_of("test")  # which is made of all others
CONDA_NAMES = {"torch": "pytorch", "playwright": "playwright-python"}
PINNED_BY_TORCH = ("nvidia-", "cuda-", "triton")  # its CUDA build names exact versions of these itself


# pyproject.toml


@pytest.mark.parametrize("pin", PINS, ids=lambda pin: pin.name)
def test_every_dependency_is_pinned_to_one_version(pin: Requirement) -> None:
    assert [specifier.operator for specifier in pin.specifier] == ["=="]
    assert "*" not in str(pin.specifier)


def test_every_dependency_says_what_it_is_for() -> None:
    lines = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line.startswith('    "') and "==" in line]
    assert len(pinned) == len(PINS) == len({pin.name for pin in PINS})
    assert [line for line in pinned if "  # " not in line and '", # ' not in line] == []


def test_everybody_agrees_on_the_pythons() -> None:
    allowed = SpecifierSet(PROJECT["requires-python"])
    minors = [minor for minor in range(30) if f"3.{minor}" in allowed]
    assert (minors[0], minors[-1]) == (doctor.OLDEST_PYTHON[1], doctor.NEWEST_PYTHON[1])


@pytest.mark.parametrize("minor", [doctor.OLDEST_PYTHON[1] - 1, doctor.NEWEST_PYTHON[1] + 1])
def test_start_refuses_the_pythons_beside_them(minor: int, monkeypatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, minor, 0, "final", 0))
    with pytest.raises(SystemExit):
        runpy.run_path(str(REPOSITORY / "start.py"))


def imported_packages() -> set[str]:
    """What the library imports, as the names under which packages are published."""
    published = packages_distributions()
    modules: set[str] = set()
    for source in (REPOSITORY / "lib").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.partition(".")[0])
    foreign = modules - set(sys.stdlib_module_names) - {"servelab"}
    return {canonicalize_name(published.get(module, [module])[0]) for module in foreign}


def test_what_the_library_imports_is_a_dependency_of_its_own() -> None:
    needed = {canonicalize_name(pin.name) for extra in ("course", "serve") for pin in pins_of(extra)}
    # What is measured beside ours runs in environments of its own, and is imported there only.
    peers = {canonicalize_name(Requirement(peer).name) for peer in PEERS.values()}
    assert imported_packages() - needed == peers


def test_nothing_is_needed_to_install_the_core() -> None:
    """That it runs on the standard library alone is tested in test_imports.py."""
    assert PROJECT["dependencies"] == []
    assert set(PROJECT["optional-dependencies"]) == {"models", "course", "serve", "test"}


# constraints.txt


def constraints() -> dict[str, Requirement]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(constraint.name): constraint for constraint in found}


def pulled_in(requirements: list[Requirement]) -> set[str]:
    """Names of everything that these requirements install on this machine, themselves included."""
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(one.name), extra) for one in requirements for extra in ("", *one.extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for needed in map(Requirement, requires(name) or []):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(needed.name), wanted) for wanted in ("", *needed.extras)]
    return {name for name, _ in seen}


def test_everything_that_is_pulled_in_is_pinned_once() -> None:
    direct = {canonicalize_name(pin.name) for pin in PINS}
    assert direct & set(constraints()) == set()
    loose = pulled_in(PINS) - direct - set(constraints())
    assert [name for name in loose if not name.startswith(PINNED_BY_TORCH)] == []


def test_what_is_installed_is_what_is_pinned() -> None:
    wrong = []
    for pin in [*PINS, *constraints().values()]:
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        try:
            installed = version(pin.name)
        except PackageNotFoundError:  # of another system
            continue
        if not pin.specifier.contains(installed):
            wrong.append(f"{pin} but {installed} is installed")
    assert wrong == []


# environment.yml


def environment() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))
    return loaded


def differences(found: dict[str, Any]) -> set[str]:
    """How an environment.yml departs from pyproject.toml; specs of both, in conda's spelling."""
    ours = {f"{CONDA_NAMES.get(pin.name, pin.name).lower()}{pin.specifier}" for pin in PINS}
    python = ",".join(sorted(PROJECT["requires-python"].split(","), reverse=True))
    theirs = [spec for spec in found["dependencies"] if isinstance(spec, str)]
    return (ours | {f"python{python}", "pip"}) ^ set(theirs)


def test_conda_gets_the_same_versions() -> None:
    assert differences(environment()) == set()


@pytest.mark.parametrize("change", ["pytorch==2.12.0", "pytorch", None])
def test_a_departure_would_be_found(change: str | None) -> None:
    changed = copy.deepcopy(environment())
    changed["dependencies"].remove("pytorch==2.13.0")
    changed["dependencies"] += [change] if change else []
    assert "pytorch==2.13.0" in differences(changed)


def test_conda_understands_every_spec() -> None:
    for spec in environment()["dependencies"]:
        if isinstance(spec, str):
            parsed = MatchSpec(spec, strict=True)
            assert parsed.name is not None
            assert spec.startswith(parsed.name.normalized)


def test_the_file_has_the_shape_conda_expects() -> None:
    found = environment()
    assert set(found) == {"name", "channels", "dependencies"}
    assert found["name"] == PROJECT["name"]
    assert found["channels"] == ["conda-forge", "nodefaults"]
    assert [spec for spec in found["dependencies"] if not isinstance(spec, str)] == [
        {"pip": ["--editable ."]}
    ]


def test_the_file_says_how_far_it_is_checked() -> None:
    assert "is not tested, because solving needs the channel" in " ".join(
        (REPOSITORY / "environment.yml").read_text(encoding="utf-8").replace("#", "").split()
    )
