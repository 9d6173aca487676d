"""`servelab`: the course's tools in a terminal.

Each command imports what it needs when it is called, so that `servelab --help` is quick.
Whatever goes wrong for a known reason is one sentence and a non-zero exit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except Exception as error:
        if not _is_known(error):
            raise
        print(f"servelab: {error}", file=sys.stderr)
        return 1


def _is_known(error: Exception) -> bool:
    """Errors whose message was written for the person at the terminal."""
    from servelab.lab.tidy import TidyError
    from servelab.models.smollm2 import WeightsError
    from servelab.request import InvalidRequest

    return isinstance(error, WeightsError | InvalidRequest | TidyError | OSError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="servelab", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="is everything here that the course needs?")
    doctor.add_argument("--json", action="store_true", help="for machines")
    doctor.set_defaults(run=_doctor)

    weights = commands.add_parser("weights", help="fetch the default model, once")
    weights.set_defaults(run=_weights)

    demo = commands.add_parser("demo", help="three users, two at a time, streaming side by side")
    demo.add_argument("--scripted", action="store_true", help="at once, without a real model")
    demo.add_argument("--tokens", type=int, default=24, metavar="N", help="longest answer (default 24)")
    demo.add_argument("--output", type=Path, default=Path("demo"), metavar="FOLDER", help="where to save")
    demo.set_defaults(run=_demo)

    bench = commands.add_parser("bench", help="measure, and say on which machine")
    bench.add_argument("what", choices=["core", "sharing"])
    bench.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON too")
    bench.set_defaults(run=_bench)

    audit = commands.add_parser("audit", help="may this model be shared between threads?")
    audit.add_argument("factory", metavar="MODULE:FACTORY", help="a function that returns (model, example)")
    audit.add_argument("--example", metavar="MODULE:NAME", help="the example, if the factory returns a model")
    audit.set_defaults(run=_audit)

    tidy = commands.add_parser("tidy", help="for authors: make notebooks fit to be saved")
    tidy.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: all lessons")
    tidy.set_defaults(run=_tidy)

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


def _demo(options: argparse.Namespace) -> int:
    from servelab.lab import demo

    return demo.run(scripted=options.scripted, tokens=options.tokens, folder=options.output)


def _bench(options: argparse.Namespace) -> int:
    if options.what == "sharing":
        from servelab.bench import sharing

        return sharing.run(options.output)
    from servelab.bench import core

    return core.run(options.output)


def _audit(options: argparse.Namespace) -> int:
    from servelab.thread_safety.auditing import terminal

    return terminal.run(options.factory, options.example)


def _tidy(options: argparse.Namespace) -> int:
    from servelab.lab import tidy

    return tidy.run(options.notebooks)


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
