"""`servelab audit module:factory`: the audit of a model that a function of yours builds.

The exit status says what a script wants to know: 0 when the model may be shared, 1 when it may not, and
2 when nothing could be found out.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from servelab.thread_safety.auditing.audit import audit
from servelab.thread_safety.auditing.report import Verdict


class CannotAudit(Exception):
    """What the user named is not there, or is not what an audit needs."""


def run(factory: str, example: str | None = None) -> int:
    """Build, audit, print; errors are sentences that say what to do."""
    try:
        report = audit(*_built(factory, example))
    except (CannotAudit, TypeError, ValueError) as error:
        print(f"servelab audit: {error}", file=sys.stderr)
        return 2
    except SystemExit:
        print("servelab audit: the model ends the program when it is called (SystemExit).", file=sys.stderr)
        return 2
    print(report)
    return 0 if report.verdict in (Verdict.SAFE, Verdict.GUARDED) else 1


def _built(factory: str, example: str | None) -> tuple[nn.Module, Any]:
    made = _called(factory)
    if example is not None:
        made = made, _called(example)
    if not isinstance(made, tuple) or len(made) != 2:
        raise CannotAudit(
            f"{factory} returned {type(made).__name__} and no example: return (model, example), "
            "or name the example with --example MODULE:NAME."
        )
    if not isinstance(made[0], nn.Module):
        raise CannotAudit(f"{factory} returned {type(made[0]).__name__}: an audit needs an nn.Module.")
    return made


def _called(name: str) -> Any:
    """What `module:name` is, or returns when it is a function. Modules are also looked for where you are.

    What goes wrong in the user's own code is said, too: a traceback's exit status would mean `unsafe`.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise CannotAudit(f"{name!r} names nothing: write MODULE:NAME, such as my_models:build.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute, None)
        made = found() if callable(found) and not isinstance(found, nn.Module) else found
    except ModuleNotFoundError as error:
        raise CannotAudit(f"{error}: is {module}.py in this folder, or {module} installed?") from error
    except (Exception, SystemExit) as error:  # sys.exit(0) would say `may be shared`, and nothing was audited
        raise CannotAudit(f"{module} raised {type(error).__name__}: {error}") from error
    if found is None:
        raise CannotAudit(f"{module} has no {attribute}: check the name after the colon.")
    return made
