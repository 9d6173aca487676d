"""`servelab`: the course's tools in a terminal.

Each command imports what it needs when it is called, so that `servelab --help` is quick.
Whatever goes wrong for a known reason is one sentence and a non-zero exit.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from servelab.machine import versions

# Each a file in bench/.
BENCHES = ("core", "strategies", "sharing", "pool", "asyncio", "memory", "first_batch", "batching")


def main(arguments: Sequence[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter shows a question mark
            stream.reconfigure(errors="replace")
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help()
        return 0
    try:
        _require_writable(getattr(options, "output", None) or getattr(options, "folder", None))
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _said("Stopped.", 130)
    except BrokenPipeError:  # whoever read has seen enough, as in `servelab doctor | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith("servelab"):
            raise
        return _said(f"servelab: this needs {missing.name}: run `pip install 'servelab[course]'`.")
    except Exception as error:
        if not _is_for_readers(error):
            raise
        return _said(f"servelab: {error}")


def _said(sentence: str, status: int = 1) -> int:
    print(sentence, file=sys.stderr)
    return status


def _is_for_readers(error: Exception) -> bool:
    """Whether its message was written for the person at the terminal: errors of our own, and the system's."""
    ours = type(error).__module__.partition(".")[0] == "servelab"
    return ours or isinstance(error, OSError)


def _require_writable(target: Path | None) -> None:
    """Find out before the work, and not after it, that its result could not be saved."""
    if target is None:
        return
    there = next(place for place in (target.absolute(), *target.absolute().parents) if place.exists())
    folder = there if there.is_dir() else there.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        reason = problem.strerror or problem
        raise PermissionError(f"{folder} cannot be written ({reason}): name another place.") from problem


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="servelab", description="The course's tools in a terminal.")
    parser.add_argument("--version", action="version", version=f"servelab {versions()['servelab']}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="is everything here that the course needs?")
    doctor.add_argument("--json", action="store_true", help="for machines")
    doctor.set_defaults(run=_doctor)

    weights = commands.add_parser("weights", help="fetch the default model, once")
    weights.set_defaults(run=_weights)

    lessons = commands.add_parser("lessons", help="your copies of the lessons")
    lessons.add_argument("--fresh", metavar="LESSON", help="start this one again, keeping the old copy")
    lessons.set_defaults(run=_lessons)

    demo = commands.add_parser("demo", help="three users, two at a time, streaming side by side")
    demo.add_argument("--scripted", action="store_true", help="at once, without a real model")
    demo.add_argument("--tokens", type=int, default=24, metavar="N", help="longest answer (default 24)")
    demo.add_argument("--output", type=Path, default=Path("demo"), metavar="FOLDER", help="where to save")
    demo.set_defaults(run=_demo)

    bench = commands.add_parser("bench", help="measure, and say on which machine")
    bench.add_argument("what", choices=BENCHES)
    bench.add_argument(
        "--output", type=Path, metavar="PLACE", help="save all values: a .json file, or a folder"
    )
    bench.add_argument("--setup", action="store_true", help="install the systems to compare with (batching)")
    bench.add_argument("--beside", type=Path, metavar="FILE", help="a saved run, to compare with")
    bench.set_defaults(run=_bench)

    challenge = commands.add_parser("challenge", help="score your policy beside the shipped ones")
    challenge.add_argument("file", type=Path, metavar="FILE.py", help="with a class BatchingPlan")
    challenge.set_defaults(run=_challenge)

    audit = commands.add_parser("audit", help="may this model be shared between threads?")
    audit.add_argument("factory", metavar="MODULE:FACTORY", help="a function that returns (model, example)")
    audit.add_argument("--example", metavar="MODULE:NAME", help="the example, if the factory returns a model")
    audit.set_defaults(run=_audit)

    html = commands.add_parser("html", help="the course as static pages")
    html.add_argument("folder", type=Path, metavar="OUT")
    html.set_defaults(run=_html)

    _add_workshop(commands.add_parser("workshop", help="a folder to hand out, and pages for who gives it"))
    return parser


def _add_workshop(workshop: argparse.ArgumentParser) -> None:
    workshop.add_argument("folder", type=Path, metavar="OUT")
    workshop.add_argument("--without", action="append", default=[], choices=["solutions", "outputs"])
    workshop.add_argument(
        "--bundle", action="store_true", help="packages and weights too, for a room without network"
    )
    workshop.add_argument("--platforms", default="", metavar="win,mac,linux", help="default: this one")
    workshop.add_argument("--pythons", default="", metavar="3.12,3.13", help="default: this one")
    workshop.add_argument("--torch-index", metavar="URL", help="where the small torch for Linux is")
    workshop.set_defaults(run=_workshop)


def _doctor(options: argparse.Namespace) -> int:
    from servelab.lab import doctor

    return doctor.run(as_json=options.json)


def _weights(options: argparse.Namespace) -> int:
    from servelab.models import smollm2

    print(f"The weights are in {smollm2.fetch()}")
    return 0


def _lessons(options: argparse.Namespace) -> int:
    from servelab.lab import lessons

    return lessons.run(options.fresh)


def _demo(options: argparse.Namespace) -> int:
    from servelab.lab import demo

    return demo.run(scripted=options.scripted, tokens=options.tokens, folder=options.output)


def _bench(options: argparse.Namespace) -> int:
    bench = import_module(f"servelab.bench.{options.what}")
    if options.setup:
        return int(bench.setup()) if hasattr(bench, "setup") else _nothing_to_set_up(options.what)
    return int(bench.run(options.output, options.beside))


def _nothing_to_set_up(what: str) -> int:
    print(f"servelab bench {what} compares with no other system: leave out --setup.")
    return 2


def _challenge(options: argparse.Namespace) -> int:
    from servelab.lab import challenge

    return challenge.run(options.file)


def _audit(options: argparse.Namespace) -> int:
    from servelab.thread_safety.auditing import terminal

    return terminal.run(options.factory, options.example)


def _html(options: argparse.Namespace) -> int:
    from servelab.lab.editions import html

    return html.run(options.folder)


def _workshop(options: argparse.Namespace) -> int:
    from servelab.lab.editions import bundle, workshop

    targets = bundle.targets(options.platforms, options.pythons) if options.bundle else []
    workshop.run(options.folder, [workshop.Part(part) for part in options.without])
    if not targets:
        return 0
    return bundle.run(options.folder / "bundle", targets, options.torch_index or bundle.CPU_INDEX)


if __name__ == "__main__":
    sys.exit(main())
