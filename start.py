"""Set servelab up and open the course. Needs nothing but Python and this repository.

    python start.py              set up what is missing, then open JupyterLab on your copies of the lessons
    python start.py --no-browser the same on a server: prints an address instead of opening a browser
    python start.py --fresh 02   start lesson 02 again; your old copy is kept beside it
    python start.py --offline /media/stick/bundle
                                 set up without a network, from what `servelab workshop --bundle` gathered
    python start.py test         set up, then check style, types, tests, every notebook, and a browser

Everything goes into `.venv` beside this file, except the model weights, which go into your cache folder.
Knows nothing about what the course contains: weights and copies are made by the library it installs.
"""

import sys

# Before anything else, and in words that every Python 3 understands (so no newer syntax in this file).
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit(
        f"servelab needs Python 3.11 to 3.14 and this is {sys.version_info[0]}.{sys.version_info[1]}: "
        "install one from https://www.python.org/downloads/ and start with it, as in `python3.13 start.py`."
    )

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sysconfig
import time
import tomllib
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from http.client import HTTPException
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
CONSTRAINTS = ROOT / "constraints.txt"
NOTEBOOKS = ROOT / "notebooks"
LESSONS = ROOT / "my-lessons"
PIP_LOG = VENV / "pip.log"

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INDEX_PATIENCE = 4.0  # seconds in which an index for torch must answer

GB = 10**9
DISK_FOR_CPU = 3 * GB  # 1.8 GB when done, and the files pip unpacks on the way
DISK_FOR_GPU = 8 * GB  # 5.3 GB when done, most of it CUDA libraries


class Stop(Exception):
    """Set-up cannot go on; the message is one sentence that says what to do next."""


class Kind(Enum):
    """What is installed: enough to learn, or the tools that check the course as well."""

    COURSE = ".[course]"
    TEST = ".[test]"


@dataclass(frozen=True)
class Options:
    kind: Kind
    browser: bool
    fresh: "str | None"
    torch_index: "str | None"
    offline: "Path | None"


@dataclass(frozen=True)
class Machine:
    """What decides whether there is a build of torch for this Python."""

    system: str
    processor: str
    bits: int
    system_version: str  # of macOS; of glibc on Linux, empty when another C library is used
    free_threaded: bool
    nvidia: bool


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    try:
        machine = this_machine()
        refuse(machine)
        if options.offline is not None:
            use_bundle(options.offline, machine)
        if not is_set_up(options.kind):
            set_up(machine, options)
        fetch_weights()
        if options.kind is Kind.TEST:
            return run_checks()
        if options.fresh is not None:
            return make_copies("--fresh", options.fresh)
        return make_copies() or open_course(options.browser)
    except Stop as reason:
        print(f"\n{reason}", file=sys.stderr)
        return 1
    except OSError as problem:
        place = problem.filename or ROOT
        print(
            f"\nCannot write {place} ({problem.strerror}): make it writable, then try again.", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("\nStopped; run the same command again and it starts cleanly from here.", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="start.py", description="Set servelab up and open the course.")
    parser.add_argument(
        "command", nargs="?", choices=["test"], help="check everything instead of opening the course"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address instead of opening a browser"
    )
    parser.add_argument("--fresh", metavar="LESSON", help="start this lesson again, keeping your old copy")
    parser.add_argument("--torch-index", metavar="URL", help="package index to take torch from")
    parser.add_argument(
        "--offline", metavar="BUNDLE", type=Path, help="set up without a network, from this folder"
    )
    given = parser.parse_args(arguments)
    kind = Kind.TEST if given.command == "test" else Kind.COURSE
    return Options(kind, not given.no_browser, given.fresh, given.torch_index, given.offline)


# Can it work here?


def this_machine() -> Machine:
    system = platform.system()
    # Asked of the C library and not of the file: glibc answers, musl (Alpine) does not.
    version = platform.mac_ver()[0] if system == "Darwin" else platform.libc_ver()[1]
    return Machine(
        system=system,
        processor=platform.machine().lower(),
        bits=64 if sys.maxsize > 2**32 else 32,
        system_version=version,
        free_threaded=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        nvidia=shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists(),
    )


def refuse(machine: Machine) -> None:
    """Stop on a machine for which torch 2.13 is not published, before anything is downloaded."""
    if machine.bits != 64:
        raise Stop(
            "This is a 32-bit Python and torch needs a 64-bit one: install that from https://www.python.org."
        )
    if machine.free_threaded:
        raise Stop(
            "This is a free-threaded Python, for which some packages are missing: use the ordinary build."
        )
    if machine.system == "Darwin":
        refuse_mac(machine)
    elif machine.system == "Windows":
        refuse_windows(machine)
    elif machine.system == "Linux":
        refuse_linux(machine)
    else:
        raise Stop(
            f"torch is not published for {machine.system}: use Linux, Windows, or macOS on Apple silicon."
        )


def refuse_mac(machine: Machine) -> None:
    if machine.processor != "arm64":
        raise Stop(
            "torch is no longer published for Intel Macs: use another machine, or, if this Mac has Apple "
            "silicon, install an arm64 Python from https://www.python.org (this one is an Intel build)."
        )
    if version_of(machine.system_version) < (14,):
        raise Stop(
            f"torch needs macOS 14 and this is {machine.system_version}: update it, or use another machine."
        )


def refuse_windows(machine: Machine) -> None:
    if machine.processor not in ("amd64", "x86_64"):
        raise Stop(
            "torch is not published for Windows on Arm: use an x64 machine, or Linux in WSL on this one."
        )


def refuse_linux(machine: Machine) -> None:
    if machine.processor not in ("x86_64", "aarch64"):
        raise Stop(
            f"torch is not published for {machine.processor} processors: use an x86-64 or Arm64 machine."
        )
    if not machine.system_version:
        raise Stop(
            "torch needs glibc, which this Linux does not use (musl, as in Alpine?): use Debian or Ubuntu."
        )
    if version_of(machine.system_version) < (2, 28):
        raise Stop(
            f"torch needs glibc 2.28 and this is {machine.system_version}: use a system from 2019 or later."
        )


def version_of(text: str) -> "tuple[int, ...]":
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def require_space(needed: int) -> None:
    free = shutil.disk_usage(ROOT).free
    if free < needed:
        raise Stop(
            f"Setting up needs {needed / GB:.0f} GB of disk in {ROOT}, where {free / GB:.1f} GB are free: "
            "make room, or move this folder to another disk, then run start.py again."
        )


# Setting up, once


def is_set_up(kind: Kind) -> bool:
    return (
        PYTHON.exists() and stamp(kind).exists() and stamp(kind).read_text(encoding="utf-8") == fingerprint()
    )


def stamp(kind: Kind) -> Path:
    """The file that says a set-up was finished, and of what."""
    return VENV / f"set-up-{kind.name.lower()}.txt"


def fingerprint() -> str:
    """Changes when a version in pyproject.toml or constraints.txt does, or the Python that runs this."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = json.dumps([project["dependencies"], project["optional-dependencies"], project["scripts"]])
    digest = hashlib.sha256((pins + CONSTRAINTS.read_text(encoding="utf-8")).encode()).hexdigest()
    return f"Python {sys.version_info[0]}.{sys.version_info[1]}\npins {digest}\n"


def set_up(machine: Machine, options: Options) -> None:
    torch_source = [] if options.offline else find_torch(machine, options.torch_index)
    ordinary_linux_build = machine.system == "Linux" and not torch_source and not options.offline
    require_space(DISK_FOR_GPU if ordinary_linux_build else DISK_FOR_CPU)
    make_venv()
    # Torch first and alone: whatever is installed after it finds it there and cannot bring another build.
    say(f"Installing {torch_pin()}")
    pip("install", "--no-deps", *torch_source, torch_pin())
    say("Installing the other packages")
    pip("install", "--constraint", str(CONSTRAINTS), "--editable", options.kind.value)
    PIP_LOG.unlink(missing_ok=True)  # tens of megabytes that nobody needs after a success
    for kind in {Kind.COURSE, options.kind}:
        stamp(kind).write_text(fingerprint(), encoding="utf-8")


def make_venv() -> None:
    """A new `.venv`, unless a finished one of the same Python is there, which pip can bring up to date."""
    first_line = fingerprint().splitlines()[0]
    finished = stamp(Kind.COURSE).exists() and stamp(Kind.COURSE).read_text(encoding="utf-8").startswith(
        first_line
    )
    if finished and PYTHON.exists():
        for kind in Kind:
            stamp(kind).unlink(missing_ok=True)
        return
    if Path(sys.prefix).resolve() == VENV:
        raise Stop(
            "The environment in .venv must be made anew but is active: run `deactivate`, then start.py again."
        )
    say("Making the environment .venv")
    # What an interrupted set-up left behind is not trusted: --clear starts from nothing.
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True
    )
    if made.returncode != 0:
        raise Stop(explain_venv(made.stdout + made.stderr))


def use_bundle(bundle: Path, machine: Machine) -> None:
    """Let every pip that is started from here on, the one for the weights too, look nowhere else."""
    try:
        contents = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
        made_for = contents["made_for"]
    except (OSError, ValueError, KeyError):
        raise Stop(
            f"{bundle} is not a bundle: give the folder that `servelab workshop --bundle` made."
        ) from None
    this = f"{machine.system} {machine.processor}, Python {sys.version_info[0]}.{sys.version_info[1]}"
    if this not in made_for:
        raise Stop(
            f"The bundle has nothing for {this}, only for: {'; '.join(made_for)}: take another Python."
        )
    os.environ["PIP_NO_INDEX"] = "1"
    # As an address, in which a space is written %20: pip takes several places, with spaces between them.
    os.environ["PIP_FIND_LINKS"] = (bundle.resolve() / "wheels").as_uri()


def torch_pin() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(next(pin for pin in project["optional-dependencies"]["models"] if pin.startswith("torch==")))


def find_torch(machine: Machine, index: "str | None") -> "list[str]":
    """pip's options for taking torch from the right place; none means the index pip is configured with."""
    if index is None and (machine.system != "Linux" or machine.nvidia):
        return []
    index = index or CPU_INDEX  # on Linux the ordinary build brings gigabytes of CUDA libraries
    if not answers(index):
        say(f"{index} does not answer; taking torch from the configured package index")
        return []
    return ["--index-url", index]


def answers(index: str) -> bool:
    """Is the index there? Asked first, because pip would go on trying for minutes."""
    if not index.startswith(("http://", "https://")):
        return True  # a folder: pip says what is wrong with it
    try:
        request = urllib.request.Request(f"{index.rstrip('/')}/torch/", method="HEAD")
        with urllib.request.urlopen(request, timeout=INDEX_PATIENCE):
            return True
    except (OSError, HTTPException, ValueError):  # no route, no answer in time, or one that says no
        return False


def pip(*arguments: str) -> None:
    """Call pip, and show one line of what it is doing; all it says is in its log, kept if it fails."""
    PIP_LOG.unlink(missing_ok=True)  # what an earlier call complained about must not explain this one
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--log", str(PIP_LOG), *arguments]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as running:
        show_progress(running.stdout or ())
    if running.returncode != 0:
        log = PIP_LOG.read_text(encoding="utf-8", errors="replace") if PIP_LOG.exists() else ""
        raise Stop(explain_pip(log))


PROGRESS = ("Collecting", "Downloading", "Building", "Preparing", "Installing collected packages")


def show_progress(lines: "Iterable[str]") -> None:
    """On a terminal one line that changes; elsewhere (a log) only how much there was."""
    began = time.perf_counter()
    packages = 0
    for line in lines:
        packages += line.startswith(("Collecting", "Processing"))  # from an index, or from a file
        doing = line.strip() if line.lstrip().startswith(PROGRESS) else ""
        if doing and sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K  {packages}: {doing}"[: width + 4], end="", flush=True)
    clear = "\r\033[K" if sys.stdout.isatty() else ""
    many = "" if packages == 1 else "s"
    print(f"{clear}  {packages} package{many}, {time.perf_counter() - began:.0f} s", flush=True)


JUPYTER_SETTINGS = {
    # No question about news, and no search for updates: the course needs no network.
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # A lesson that is opened again the next day shows its guesses, sliders and players, and not dead ones.
    "@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": True},
}


def set_defaults_of_jupyter(folder: Path = VENV / "share" / "jupyter" / "lab" / "settings") -> None:
    """Defaults of this environment only; whatever users set themselves goes before them."""
    overrides, wanted = folder / "overrides.json", json.dumps(JUPYTER_SETTINGS, indent=1)
    if not overrides.exists() or overrides.read_text(encoding="utf-8") != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        overrides.write_text(wanted, encoding="utf-8")


def explain_venv(output: str) -> str:
    if "ensurepip" in output:
        return (
            "This Python came without the part that makes environments: install it (on Debian and Ubuntu "
            "with `sudo apt install python3-venv`), then run start.py again."
        )
    if "No space left" in output:
        return f"The disk is full: free {DISK_FOR_CPU / GB:.0f} GB, then run start.py again."
    reason = (output.strip().splitlines() or ["no reason given"])[-1]
    return f"{VENV} could not be made ({reason}): close programs that use it, then run start.py again."


NO_NETWORK = (
    "NameResolutionError",
    "NewConnectionError",
    "Max retries exceeded",
    "Connection refused",
    "Network is unreachable",
    "Read timed out",
    "ProxyError",
    "SSLError",
)


def explain_pip(log: str) -> str:
    """What stopped pip, from its log."""
    if "No space left on device" in log:
        return f"The disk is full: free {DISK_FOR_CPU / GB:.0f} GB, then run start.py again."
    if any(sign in log for sign in NO_NETWORK):
        return (
            "The package index cannot be reached: check the network and the proxy, then run start.py again."
        )
    missing = re.search(r"No matching distribution found for (\S+)", log)
    if missing is not None:
        return (
            f"The package index has no build of {missing[1]} for this machine: "
            "try another Python among 3.11 to 3.14, or another --torch-index."
        )
    if "DO NOT MATCH THE HASHES" in log or "BadZipFile" in log:
        return f"A download was damaged: run `{PYTHON} -m pip cache purge`, then start.py again."
    errors = re.findall(r"ERROR: (.+)", log) or ["pip did not say why"]
    return (
        f"The packages could not be installed ({errors[-1].rstrip(' .')}): read {PIP_LOG}, "
        "then run start.py again."
    )


# Using what was set up


def fetch_weights() -> None:
    """The library fetches, checks and converts them; it says itself what is wrong when it cannot."""
    if run_python("-m", "servelab.cli", "weights") != 0:
        raise Stop("The course needs the weights: do what the line above says, then run start.py again.")


def make_copies(*arguments: str) -> int:
    return run_python("-m", "servelab.cli", "lessons", *arguments)


IDLE = 1800  # seconds until a kernel without use ends; never while its lesson is open in a browser


def open_course(browser: bool) -> int:
    # Warnings only: what remains on the screen is the address.
    options = ["--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={LESSONS}", "--ServerApp.log_level=WARN"]
    if not browser:
        options.append("--no-browser")
    if (
        getattr(os, "geteuid", lambda: 1)() == 0
    ):  # in a container one often is root, and nobody else can connect
        options.append("--allow-root")
    # A lesson that is closed keeps its kernel, and with it 1.5 GB. Results and guesses are in files.
    options += [f"--MappingKernelManager.cull_idle_timeout={IDLE}", "--MappingKernelManager.cull_interval=60"]
    set_defaults_of_jupyter()
    LESSONS.mkdir(exist_ok=True)
    say("Opening JupyterLab; stop it with Ctrl-C here")
    # Ctrl-C reaches JupyterLab too, which asks before it stops: this process only waits for the answer.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    return run_python("-m", "jupyterlab", *options)


@dataclass(frozen=True)
class Stage:
    """One kind of check: what the environment's Python runs, a module or a file, and its arguments."""

    name: str
    command: "tuple[str, ...]"


BROWSER_TEST = "tests/test_browser.py"
STAGES = (
    Stage("ruff check", ("-m", "ruff", "check", ".")),
    Stage("ruff format", ("-m", "ruff", "format", "--check", ".")),
    Stage("mypy", ("-m", "mypy")),
    Stage("pytest", ("-m", "pytest", "-n", "2", "--dist", "loadfile", f"--ignore={BROWSER_TEST}")),
    Stage("notebooks", ("tools/rerun.py",)),
    Stage("browser", ("-m", "pytest", BROWSER_TEST)),
)


def run_checks() -> int:
    """All stages, also after one failed, and a summary in which the failed and the skipped ones are named."""
    summary = []
    failed = 0
    skipped = 0
    for stage in STAGES:
        reason = why_not(stage)
        if reason:
            skipped += 1
            summary.append(f"{stage.name:<12} SKIPPED: {reason}")
            continue
        say(stage.name)
        started = time.perf_counter()
        passed = run_python(*stage.command) == 0
        failed += not passed
        summary.append(
            f"{stage.name:<12} {'passed' if passed else 'FAILED'} {time.perf_counter() - started:6.1f} s"
        )
    say("Summary", *summary)
    print(f"\n{verdict(failed, skipped)}")
    return 1 if failed else 0


def why_not(stage: Stage) -> str:
    """Why a stage cannot run here and what to do about it; empty when it can."""
    if stage.name == "notebooks" and not any(NOTEBOOKS.glob("*.ipynb")):
        return "there are no notebooks yet."
    if stage.name == "browser" and find_browser() is None:
        return "no Chromium or Chrome is here: install one (on Debian `sudo apt install chromium`)."
    return ""


def verdict(failed: int, skipped: int) -> str:
    if failed:
        return f"{failed} of {len(STAGES)} stages failed: see above."
    return (
        f"All that ran passed; {skipped} of {len(STAGES)} stages skipped."
        if skipped
        else "Everything passed."
    )


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSERS_ELSEWHERE = (  # on macOS and Windows they are not in the PATH
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
)


def find_browser() -> "str | None":
    """A browser that a program can drive; the browser test asks here too."""
    found = [shutil.which(name) for name in BROWSERS] + [shutil.which(path) for path in BROWSERS_ELSEWHERE]
    return next((path for path in found if path is not None), None)


def run_python(*arguments: str) -> int:
    return subprocess.run([str(PYTHON), *arguments], cwd=ROOT, env=environment()).returncode


def environment() -> "dict[str, str]":
    """Variables as after activating `.venv`, so that commands typed in a lesson mean its programs."""
    variables = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")
    }
    path = os.pathsep.join([str(PYTHON.parent), variables.get("PATH", "")])
    return {**variables, "PATH": path, "VIRTUAL_ENV": str(VENV)}


def say(*lines: str) -> None:
    print("", *lines, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
