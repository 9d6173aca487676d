"""Wheels and weights for a room without network, installed by `python start.py --offline BUNDLE`.

pip can download for another system but decides conditions such as `sys_platform == "win32"` by the one
it runs on. So the packages are found here, by walking from our pins through what the installed
packages ask for as the other system would, and pip fetches exactly those. Installs nothing.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from servelab.lab.editions import EditionError
from servelab.lab.lessons import REPOSITORY
from servelab.models import smollm2

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # on Linux the ordinary build brings gigabytes
CONFIGURED = "configured"  # the index that pip uses anyway


class Platform(Enum):
    """system, processor: as start.py sees them. tags: of wheels, the newest first."""

    WIN = ("Windows", "amd64", "win32", ("win_amd64",))
    MAC = ("Darwin", "arm64", "darwin", tuple(f"macosx_{version}_0_arm64" for version in (14, 13, 12, 11)))
    LINUX = (
        "Linux",
        "x86_64",
        "linux",
        (
            *(f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)),
            "manylinux2014_x86_64",
            "linux_x86_64",
        ),
    )

    @property
    def tags(self) -> tuple[str, ...]:
        tags: tuple[str, ...] = self.value[3]
        return tags


@dataclass(frozen=True)
class Target:
    """A system and a Python, such as 3.13, for which a bundle is made."""

    platform: Platform
    python: str

    def __str__(self) -> str:
        return f"{self.platform.value[0]} {self.platform.value[1]}, Python {self.python}"

    @property
    def release(self) -> str:
        """Not the first: "3.11" would mean 3.11.0 to pip, and some packages leave out the first few."""
        return f"{self.python}.9"

    def environment(self) -> dict[str, str]:
        """What conditions of requirements are decided by."""
        system, processor, sys_platform, _ = self.platform.value
        return {
            **{name: str(value) for name, value in default_environment().items()},
            "platform_system": system,
            "platform_machine": "AMD64" if system == "Windows" else processor,
            "sys_platform": sys_platform,
            "os_name": "nt" if system == "Windows" else "posix",
            "python_version": self.python,
            "python_full_version": self.release,
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }


def here() -> Target:
    """This system and this Python."""
    for each in Platform:
        if each.value[:2] == (platform.system(), platform.machine().lower()):
            return Target(each, f"{sys.version_info[0]}.{sys.version_info[1]}")
    raise EditionError("Bundles are made for Windows, Macs with Apple silicon and x86-64 Linux: say which.")


def targets(platforms: str, pythons: str) -> list[Target]:
    """All pairs of comma-separated names, such as "win,mac" and "3.12,3.13"; empty means this machine's."""
    this = here() if not (platforms and pythons) else None
    known = {each.name.lower(): each for each in Platform}
    names = platforms.split(",") if platforms else []
    if unknown := [name for name in names if name not in known]:
        raise EditionError(f"There is no platform {unknown[0]}: name some of {', '.join(known)}.")
    systems = [known[name] for name in names] or ([this.platform] if this else [])
    versions = pythons.split(",") if pythons else ([this.python] if this else [])
    if wrong := [version for version in versions if version not in PYTHONS]:
        raise EditionError(
            f"The course does not run on Python {wrong[0]}: name some of {', '.join(PYTHONS)}."
        )
    return [Target(system, version) for system in systems for version in versions]


def run(folder: Path, targets: Sequence[Target], torch_index: str = CPU_INDEX) -> int:
    """Download everything for these targets into `folder`; says how large it became."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for target in targets:
        print(f"Downloading for {target} ...", flush=True)
        for command in commands(target, wheels, torch_index):
            _pip(command, target)
    _require_small_torch(wheels, targets)
    made_for = {"made_for": [str(target) for target in targets]}
    (folder / "bundle.json").write_text(json.dumps(made_for, indent=1) + "\n", encoding="utf-8")
    size = sum(wheel.stat().st_size for wheel in wheels.iterdir())
    print(f"{size / 1e9:.1f} GB: install it with `python start.py --offline {shlex.quote(str(folder))}`")
    return 0


def commands(target: Target, wheels: Path, torch_index: str = CPU_INDEX) -> Iterator[list[str]]:
    """What pip is called with: once for torch, which has an index of its own on Linux, once for the rest."""
    options = ["download", "--no-deps", "--only-binary=:all:", "--dest", str(wheels)]
    options += ["--implementation", "cp", "--python-version", target.release]
    for abi in (f"cp{target.python.replace('.', '')}", "abi3", "none"):
        options += ["--abi", abi]
    for tag in target.platform.tags:
        options += ["--platform", tag]
    torch, *others = sorted(packages(target), key=lambda pin: not pin.startswith("torch=="))
    elsewhere = target.platform is Platform.LINUX and torch_index != CONFIGURED
    small = ["--index-url", torch_index] if elsewhere else []
    yield [*options, *small, torch]
    yield [*options, *others, *_builders(), smollm2.PACKAGE]


def packages(target: Target) -> list[str]:
    """Every package the course needs there, with its version."""
    environment = target.environment()
    versions = _constraints(environment)
    versions |= {_name(pin): pin for pin in pins_of("test")}  # some packages of ours need one of the tools
    found: set[tuple[str, str]] = set()
    ahead = [(_name(pin), extra) for pin in pins_of("course") for extra in ("", *pin.extras)]
    while ahead:
        package = ahead.pop()
        if package not in found:
            found.add(package)
            ahead += _needs(*package, environment)
    names = {name for name, _ in found}
    if unknown := names - versions.keys():
        raise EditionError(f"constraints.txt has no version of {', '.join(sorted(unknown))}: add it there.")
    return sorted(f"{versions[name].name}{versions[name].specifier}" for name in names)


def pins_of(extra: str) -> list[Requirement]:
    """The packages of one extra in pyproject.toml, those of the extras it is made of included."""
    pins: dict[str, Requirement] = {}
    for pin in map(Requirement, _project()["project"]["optional-dependencies"][extra]):
        ours = pin.name == "servelab"
        inner = [one for name in sorted(pin.extras) for one in pins_of(name)] if ours else [pin]
        pins |= {one.name: one for one in inner}
    return list(pins.values())


# What the large build of torch asks for, if that is the one installed here; bundles carry the small one.
CUDA_LIBRARIES = ("nvidia-", "cuda-", "triton")


def _needs(name: str, extra: str, environment: dict[str, str]) -> Iterator[tuple[str, str]]:
    try:
        asked = requires(name) or []
    except PackageNotFoundError:  # made for the other system only; those few need nothing themselves
        return
    for need in map(Requirement, asked):
        wanted_here = need.marker is None or need.marker.evaluate({**environment, "extra": extra})
        if wanted_here and not _name(need).startswith(CUDA_LIBRARIES):
            yield from ((_name(need), wanted) for wanted in ("", *need.extras))


def _constraints(environment: dict[str, str]) -> dict[str, Requirement]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line.partition(" #")[0]) for line in lines if line and not line.startswith("#")]
    return {_name(pin): pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)}


def _builders() -> list[str]:
    """What builds our own package when it is installed."""
    return list(_project()["build-system"]["requires"])


def _project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def _name(pin: Requirement) -> str:
    return canonicalize_name(pin.name)


def _pip(command: Sequence[str], target: Target) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *command]
    if subprocess.run(pip).returncode != 0:
        raise EditionError(
            f"The packages for {target} could not all be downloaded (pip said why, above): check the "
            "network, or take a Python for which all of them are published."
        )


def _require_small_torch(wheels: Path, targets: Sequence[Target]) -> None:
    if any(target.platform is Platform.LINUX for target in targets):
        large = [wheel.name for wheel in wheels.glob("torch-*linux*.whl") if "+cpu" not in wheel.name]
        if large:
            raise EditionError(
                f"{large[0]} is the build that needs CUDA libraries: delete it and name an index of the "
                "small build with --torch-index."
            )
