"""start.py: what it installs and in which order, when it does nothing, and how it fails.

Every test works on a copy of start.py in an empty folder, so nothing here touches the real `.venv`;
the programs it would start are recorded instead.
"""

from __future__ import annotations

import ast
import http.server
import importlib.util
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A copy of start.py, imported, in a folder with the project's pins and plenty of disk."""
    for name in ("start.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    spec = importlib.util.spec_from_file_location("start_copy", tmp_path / "start.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "start_copy", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: DiskUsage(10**12, 0, 10**12))
    monkeypatch.setattr(module, "answers", lambda _: True)
    monkeypatch.setattr(module, "this_machine", lambda: LINUX(module))
    return module


def LINUX(start: ModuleType, **changes: object) -> object:
    machine = start.Machine("Linux", "x86_64", 64, "2.36", free_threaded=False, nvidia=False)
    return replace(machine, **changes)


class Outcome(subprocess.CompletedProcess[str]):
    """What both `subprocess.run` and `subprocess.Popen` give, as far as start.py asks."""

    def __enter__(self) -> Outcome:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Programs:
    """Stands in for `subprocess.run` and `Popen`: remembers every command; a test may answer some."""

    def __init__(self, start: ModuleType) -> None:
        self.start = start
        self.commands: list[str] = []
        self.answers: dict[str, Callable[[], int]] = {}

    def __call__(self, command: list[str], **_: object) -> Outcome:
        line = " ".join(command)
        self.commands.append(line)
        if " venv " in line:
            self._make_venv()
        code = next((answer() for part, answer in self.answers.items() if part in line), 0)
        return Outcome(command, code, stdout="", stderr="")

    def _make_venv(self) -> None:
        shutil.rmtree(self.start.VENV, ignore_errors=True)
        self.start.PYTHON.parent.mkdir(parents=True)
        self.start.PYTHON.touch()

    def pip_fails_with(self, log: str, when: str = " pip ") -> None:
        def fail() -> int:
            self.start.PIP_LOG.write_text(log, encoding="utf-8")
            return 1

        self.answers[when] = fail

    def started(self, part: str) -> list[str]:
        return [command for command in self.commands if part in command]


@pytest.fixture
def programs(start: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Programs:
    recorder = Programs(start)
    monkeypatch.setattr(
        start, "subprocess", SimpleNamespace(run=recorder, Popen=recorder, PIPE=-1, STDOUT=-2)
    )
    monkeypatch.setattr(start.signal, "signal", lambda *_: None)
    return recorder


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr, which must be one line and no traceback."""
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1, said
    assert "Traceback" not in said
    assert said.endswith(".")
    return said


# Pythons and platforms


@pytest.mark.parametrize("version", [(3, 6), (3, 8), (3, 10), (3, 15)])
def test_other_pythons_are_refused_with_a_sentence(version: tuple[int, int], monkeypatch) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    with pytest.raises(SystemExit, match=rf"needs Python 3.11 to 3.14 and this is 3\.{version[1]}: install"):
        runpy.run_path(str(REPOSITORY / "start.py"))


def test_old_pythons_can_read_the_file_far_enough_to_refuse() -> None:
    def newer_syntax(source: str) -> list[str]:
        tree = ast.parse(source, feature_version=(3, 7))
        newer = (ast.NamedExpr, ast.Match, ast.TryStar)
        found = [type(node).__name__ for node in ast.walk(tree) if isinstance(node, newer)]
        found += [
            node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        ]
        found += ["/" for node in ast.walk(tree) if isinstance(node, ast.arguments) and node.posonlyargs]
        return found

    source = (REPOSITORY / "start.py").read_text(encoding="utf-8")
    assert newer_syntax(source) == []
    assert newer_syntax(source + "\nfrom __future__ import annotations\n") == ["__future__"]
    for newer in ("(x := 1)", "match x:\n    case 1: pass", "def f(a, /): pass"):
        with pytest.raises(SyntaxError):
            newer_syntax(source + "\n" + newer)


REFUSED = {
    "32-bit": {"bits": 32},
    "free-threaded": {"free_threaded": True},
    "Intel Macs": {"system": "Darwin", "processor": "x86_64", "system_version": "15.1"},
    "macOS 14": {"system": "Darwin", "processor": "arm64", "system_version": "13.6"},
    "Windows on Arm": {"system": "Windows", "processor": "arm64"},
    "i686": {"processor": "i686"},
    "musl": {"system_version": ""},
    "glibc 2.28": {"system_version": "2.17"},
    "FreeBSD": {"system": "FreeBSD", "processor": "amd64"},
}


@pytest.mark.parametrize("named", REFUSED)
def test_platforms_without_torch_are_refused_before_anything_happens(
    named: str, start: ModuleType, programs: Programs, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(start, "this_machine", lambda: LINUX(start, **REFUSED[named]))
    monkeypatch.setattr(start, "answers", lambda _: pytest.fail("asked the network"))
    assert start.main([]) == 1
    assert named in sentence(capsys)
    assert programs.commands == []
    assert not start.VENV.exists()


@pytest.mark.parametrize(
    "accepted",
    [
        {},
        {"processor": "aarch64", "system_version": "2.28"},
        {"system": "Darwin", "processor": "arm64", "system_version": "14.0"},
        {"system": "Windows", "processor": "amd64", "system_version": ""},
    ],
)
def test_platforms_with_torch_are_accepted(accepted: dict[str, str], start: ModuleType) -> None:
    start.refuse(LINUX(start, **accepted))


def test_the_machine_that_runs_this_test_is_accepted() -> None:
    start = runpy.run_path(str(REPOSITORY / "start.py"))
    start["refuse"](start["this_machine"]())


# Setting up


def test_torch_goes_in_first_and_alone_from_the_small_index(start: ModuleType, programs: Programs) -> None:
    assert start.main(["--no-browser"]) == 0
    torch, others = programs.started(" pip ")
    assert f"install --no-deps --index-url {start.CPU_INDEX} torch==2.13.0" in torch
    assert torch.endswith("torch==2.13.0")
    assert f"install --constraint {start.CONSTRAINTS} --editable .[course]" in others


def test_another_index_can_be_named(start: ModuleType, programs: Programs) -> None:
    start.main(["--torch-index", "https://example.org/cu130"])
    assert "--index-url https://example.org/cu130 torch==" in programs.started(" pip ")[0]


def test_a_silent_index_is_named_and_left_out(
    start: ModuleType, programs: Programs, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(start, "answers", lambda _: False)
    assert start.main([]) == 0
    assert "--index-url" not in programs.started(" pip ")[0]
    assert f"{start.CPU_INDEX} does not answer; taking torch from the configured" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes", [{"nvidia": True}, {"system": "Darwin", "processor": "arm64", "system_version": "15"}]
)
def test_where_the_ordinary_build_is_right_no_index_is_asked(changes, start, programs, monkeypatch) -> None:
    monkeypatch.setattr(start, "this_machine", lambda: LINUX(start, **changes))
    monkeypatch.setattr(start, "answers", lambda _: pytest.fail("asked the network"))
    assert start.main([]) == 0
    assert "--index-url" not in programs.started(" pip ")[0]


def test_the_second_start_installs_nothing(start: ModuleType, programs: Programs, monkeypatch) -> None:
    start.main([])
    programs.commands.clear()
    monkeypatch.setattr(start, "answers", lambda _: pytest.fail("asked the network"))
    assert start.main([]) == 0
    assert [command.split(" -m ")[1].split()[0] for command in programs.commands] == [
        "servelab.cli",
        "servelab.cli",
        "jupyterlab",
    ]


def test_test_adds_its_tools_to_a_finished_set_up(start: ModuleType, programs: Programs) -> None:
    start.main([])
    programs.commands.clear()
    start.main(["test"])
    assert programs.started(" venv ") == []
    assert programs.started("--editable .[test]") != []
    programs.commands.clear()
    start.main([])
    assert programs.started(" pip ") == []


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "old", "new", "still_set_up"),
    [
        ("pyproject.toml", "rich==15.0.0", "rich==15.0.1", False),
        ("constraints.txt", "anyio==", "anyio==9", False),
        ("pyproject.toml", "line-length = 110", "line-length = 100", True),
        ("pyproject.toml", "# every figure", "# all figures", True),
    ],
)
def test_only_changed_pins_make_a_set_up_stale(
    name, old, new, still_set_up, start, programs: Programs
) -> None:
    start.main([])
    change(start.ROOT / name, old, new)
    assert start.is_set_up(start.Kind.COURSE) is still_set_up
    programs.commands.clear()
    start.main([])
    assert programs.started(" venv ") == []
    assert bool(programs.started(" pip ")) is not still_set_up


def test_another_python_makes_the_environment_anew(start: ModuleType, programs: Programs) -> None:
    start.main([])
    change(start.stamp(start.Kind.COURSE), f"Python 3.{sys.version_info[1]}", "Python 3.10")
    programs.commands.clear()
    start.main([])
    assert len(programs.started("venv --clear")) == 1


def test_an_interrupted_set_up_starts_from_nothing(start: ModuleType, programs: Programs) -> None:
    programs.pip_fails_with("anything", when="--editable")
    assert start.main([]) == 1
    assert not start.is_set_up(start.Kind.COURSE)
    del programs.answers["--editable"]
    (start.VENV / "half-a-package").touch()
    assert start.main([]) == 0
    assert start.is_set_up(start.Kind.COURSE)
    assert not (start.VENV / "half-a-package").exists()


def test_an_interrupted_update_is_not_mistaken_for_the_set_up_before_it(start, programs: Programs) -> None:
    start.main([])
    change(start.ROOT / "pyproject.toml", "rich==15.0.0", "rich==15.0.1")
    programs.pip_fails_with("anything")
    start.main([])
    change(start.ROOT / "pyproject.toml", "rich==15.0.1", "rich==15.0.0")
    assert not start.is_set_up(start.Kind.COURSE)


def test_jupyterlab_is_served_to_this_machine_only(start: ModuleType, programs: Programs) -> None:
    start.main(["--no-browser"])
    [lab] = programs.started("-m jupyterlab")
    assert "--ServerApp.ip=127.0.0.1" in lab
    assert f"--ServerApp.root_dir={start.LESSONS}" in lab
    assert "--no-browser" in lab
    start.main([])
    assert "--no-browser" not in programs.started("-m jupyterlab")[-1]


def test_fresh_restores_and_does_not_open_anything(start: ModuleType, programs: Programs) -> None:
    start.main(["--fresh", "02"])
    assert programs.commands[-1].endswith("servelab.cli lessons --fresh 02")


# Failures speak


def test_full_disk_is_found_before_anything_is_made(start, programs, monkeypatch, capsys) -> None:
    monkeypatch.setattr(start.shutil, "disk_usage", lambda _: DiskUsage(10**12, 0, 10**9))
    assert start.main([]) == 1
    assert "needs 3 GB" in sentence(capsys)
    assert programs.commands == []
    monkeypatch.setattr(start, "answers", lambda _: False)  # then the build with CUDA libraries is taken
    assert start.main([]) == 1
    assert "needs 8 GB" in capsys.readouterr().err


def dead_address() -> str:
    """An address on this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def real_pip_log(folder: Path, *options: str) -> str:
    """What pip really writes when it fails with these options."""
    log = folder / "real-pip.log"
    pip = [sys.executable, "-m", "pip", "--log", str(log), "download", "--no-deps", "--retries", "0"]
    clean = {name: value for name, value in os.environ.items() if not name.upper().startswith("PIP_")}
    outcome = subprocess.run(
        [*pip, *options, "no-such-thing==1"],
        env={**clean, "PIP_CONFIG_FILE": os.devnull},
        cwd=folder,
        capture_output=True,
    )
    assert outcome.returncode != 0
    return log.read_text(encoding="utf-8")


def test_no_network_is_recognised_in_what_pip_really_says(start: ModuleType, tmp_path: Path) -> None:
    log = real_pip_log(tmp_path, "--index-url", dead_address())
    assert "index cannot be reached: check the network" in start.explain_pip(log)


def test_a_missing_build_is_recognised_in_what_pip_really_says(start: ModuleType, tmp_path: Path) -> None:
    log = real_pip_log(tmp_path, "--no-index")
    assert "no build of no-such-thing==1 for this machine" in start.explain_pip(log)


def test_a_damaged_wheel_is_recognised_in_what_pip_really_says(start: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "no_such_thing-1-py3-none-any.whl").write_bytes(b"PK\x03\x04 cut off")
    log = real_pip_log(tmp_path, "--no-index", "--find-links", str(tmp_path))
    assert "A download was damaged" in start.explain_pip(log)


def test_a_wrong_checksum_is_recognised_in_what_pip_really_says(start: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "index" / "no-such-thing" / "index.html"
    page.parent.mkdir(parents=True)
    wheel = "no_such_thing-1-py3-none-any.whl"
    (page.parent / wheel).write_bytes(b"not what was published")
    page.write_text(f'<a href="{wheel}#sha256={"0" * 64}">{wheel}</a>', encoding="utf-8")
    log = real_pip_log(tmp_path, "--index-url", (tmp_path / "index").as_uri())
    assert "A download was damaged" in start.explain_pip(log)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("ERROR: [Errno 28] No space left on device", "The disk is full"),
        ("NewConnectionError(...)", "cannot be reached"),
        ("ERROR: something new.", "could not be installed (something new)"),
        ("", "could not be installed (pip did not say why)"),
    ],
)
def test_a_failing_pip_ends_in_one_sentence(log, said, start, programs: Programs, capsys) -> None:
    programs.pip_fails_with(log)
    assert start.main([]) == 1
    assert said in sentence(capsys)
    assert not start.is_set_up(start.Kind.COURSE)


PIP_SAYS = """Looking in indexes: https://pypi.org/simple
Collecting rich==15.0.0
  Downloading rich-15.0.0-py3-none-any.whl (310 kB)
Requirement already satisfied: torch==2.13.0
Collecting tqdm==4.70.1
  Using cached tqdm-4.70.1-py3-none-any.whl (78 kB)
Installing collected packages: tqdm, rich
"""


def test_what_pip_says_becomes_one_line(start: ModuleType, monkeypatch, capsys) -> None:
    start.show_progress(PIP_SAYS.splitlines(keepends=True))
    assert re.fullmatch(r"  2 packages, \d+ s\n", capsys.readouterr().out)
    monkeypatch.setattr(start.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    start.show_progress(PIP_SAYS.splitlines(keepends=True))
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    assert "1: Downloading rich-15.0.0" in shown
    assert all(len(one) < 60 for one in shown.split("\r\033[K"))


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("The virtual environment was not created: ensurepip is not available", "apt install python3-venv"),
        ("Error: [Errno 28] No space left on device", "The disk is full"),
        ("Error: [Errno 13] Permission denied: 'python.exe'", "close programs that use it"),
        ("", "no reason given"),
    ],
)
def test_a_failing_venv_ends_in_one_sentence(output: str, said: str, start: ModuleType) -> None:
    assert said in start.explain_venv(output)


def test_missing_weights_stop_the_start(start: ModuleType, programs: Programs, capsys) -> None:
    programs.answers["servelab.cli weights"] = lambda: 1
    assert start.main([]) == 1
    assert "needs the weights" in sentence(capsys)
    assert programs.started("-m jupyterlab") == []


def test_ctrl_c_ends_in_one_sentence(start: ModuleType, programs: Programs, capsys) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    programs.answers[" pip "] = interrupt
    assert start.main([]) == 130
    assert "run the same command again" in sentence(capsys)


def test_a_folder_that_cannot_be_written_ends_in_one_sentence(start, programs, monkeypatch, capsys) -> None:
    def refuse_to_write(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "my-lessons")

    monkeypatch.setattr(start, "make_copies", refuse_to_write)
    assert start.main([]) == 1
    assert "Cannot write my-lessons (Permission denied)" in sentence(capsys)


@pytest.fixture
def index() -> Iterator[str]:
    """A package index that has torch, except under /empty, and takes its time under /slow."""
    wait = threading.Event()

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if self.path.startswith("/slow"):
                wait.wait(5)
            self.send_response(404 if self.path.startswith("/empty") else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    wait.set()
    server.shutdown()
    server.server_close()


def test_an_index_must_answer_soon_and_have_torch(index: str, monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    start = runpy.run_path(str(REPOSITORY / "start.py"))
    answers = start["answers"]
    answers.__globals__["INDEX_PATIENCE"] = 0.3
    assert answers(f"{index}/good")
    assert answers(f"{index}/good/")
    assert not answers(f"{index}/empty")
    assert not answers(f"{index}/slow")
    assert not answers(dead_address())
    assert not answers("http://[not an address")
    assert answers("file:///some/folder")


# python start.py test


@pytest.fixture
def with_notebook(start: ModuleType) -> None:
    start.NOTEBOOKS.mkdir()
    (start.NOTEBOOKS / "01_a.ipynb").touch()


@pytest.mark.usefixtures("with_notebook")
def test_all_stages_run_and_the_summary_names_the_failed_one(
    start, programs: Programs, monkeypatch, capfd
) -> None:
    monkeypatch.setattr(start, "find_browser", lambda: "/usr/bin/chromium")
    programs.answers["-m mypy"] = lambda: 1
    assert start.main(["test"]) == 1
    stages = [command.partition(" ")[2].removeprefix("-m ") for command in programs.commands[-6:]]
    assert [stage.split()[0] for stage in stages] == [
        "ruff",
        "ruff",
        "mypy",
        "pytest",
        "tools/rerun.py",
        "pytest",
    ]
    assert stages[-1] == "pytest tests/test_browser.py"
    assert "--ignore=tests/test_browser.py" in stages[-3]
    summary = capfd.readouterr().out.partition("Summary")[2].splitlines()
    assert [line.split()[0] for line in summary if "FAILED" in line] == ["mypy"]
    assert sum("passed" in line for line in summary) == 5
    assert summary[-1] == "1 of 6 stages failed: see above."


@pytest.mark.usefixtures("with_notebook")
def test_without_a_browser_the_summary_says_what_to_install(
    start, programs: Programs, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(start, "find_browser", lambda: None)
    assert start.main(["test"]) == 0
    assert not any(command.endswith("pytest tests/test_browser.py") for command in programs.commands)
    summary = capsys.readouterr().out.partition("Summary")[2]
    assert "browser      SKIPPED: no Chromium or Chrome is here: install one" in summary
    assert summary.endswith("All that ran passed; 1 of 6 stages skipped.\n")


@pytest.mark.usefixtures("with_notebook")
def test_with_everything_there_everything_passed(start, programs: Programs, monkeypatch, capsys) -> None:
    monkeypatch.setattr(start, "find_browser", lambda: "/usr/bin/chromium")
    assert start.main(["test"]) == 0
    assert capsys.readouterr().out.endswith("Everything passed.\n")


def test_it_passes_without_notebooks(start: ModuleType, programs: Programs, capsys) -> None:
    assert start.main(["test"]) == 0
    assert programs.started("rerun") == []
    assert "notebooks    SKIPPED: there are no notebooks yet." in capsys.readouterr().out


def test_a_browser_is_found_in_the_path(start: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(start, "BROWSERS_ELSEWHERE", (str(tmp_path / "Chrome.app"),))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert start.find_browser() is None
    for name in ("Chrome.app", "google-chrome"):
        program = tmp_path / name
        program.touch(mode=0o755)
        assert start.find_browser() == str(program)


def test_ci_installs_a_browser_and_runs_exactly_this() -> None:
    script = REPOSITORY / ".ci" / "run"
    lines = script.read_text(encoding="utf-8").splitlines()
    browser = re.compile(r"if .*chromium.*|    apt-get update && apt-get install .* chromium \|\| true|fi")
    other = [
        line for line in lines if not line.startswith(("#", "set", "cd")) and not browser.fullmatch(line)
    ]
    assert other == ["exec python3 start.py test"]
    assert sum("apt-get install" in line for line in lines) == 1
    assert os.name == "nt" or os.access(script, os.X_OK)


# Without a network


@pytest.fixture
def bundle(start: ModuleType, tmp_path: Path) -> Path:
    folder = tmp_path / "a stick" / "bundle"
    folder.mkdir(parents=True)
    this = f"Linux x86_64, Python {sys.version_info[0]}.{sys.version_info[1]}"
    (folder / "bundle.json").write_text(json.dumps({"made_for": [this]}), encoding="utf-8")
    return folder


def test_offline_every_pip_looks_into_the_bundle_and_nowhere_else(
    start, programs: Programs, bundle: Path, monkeypatch
) -> None:
    monkeypatch.setattr(start, "answers", lambda _: pytest.fail("asked the network"))
    seen = []
    programs.answers[""] = lambda: seen.append(start.environment()) or 0  # type: ignore[func-returns-value]
    assert start.main(["--offline", str(bundle), "--no-browser"]) == 0
    assert all("--index-url" not in command for command in programs.commands)
    assert {variables["PIP_NO_INDEX"] for variables in seen} == {"1"}
    assert {variables["PIP_FIND_LINKS"] for variables in seen} == {(bundle / "wheels").as_uri()}
    assert "a%20stick" in seen[0]["PIP_FIND_LINKS"]


def test_a_folder_that_is_no_bundle_ends_in_one_sentence(start, programs: Programs, tmp_path, capsys) -> None:
    assert start.main(["--offline", str(tmp_path)]) == 1
    assert "is not a bundle: give the folder that `servelab workshop --bundle` made" in sentence(capsys)
    assert programs.commands == []


def test_a_bundle_for_others_names_them(start, programs: Programs, bundle: Path, capsys) -> None:
    (bundle / "bundle.json").write_text('{"made_for": ["Windows amd64, Python 3.13"]}', encoding="utf-8")
    assert start.main(["--offline", str(bundle)]) == 1
    assert "only for: Windows amd64, Python 3.13" in sentence(capsys)


@pytest.fixture(autouse=True)
def _pip_variables_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "")  # so that what start.py sets is undone
        monkeypatch.delenv(name)
