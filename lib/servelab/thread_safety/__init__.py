"""Is it safe to call one model from several threads? Try it, prove it, look inside.

Import from here: `from servelab import thread_safety`. Knows models, and nothing of queues and engines. The
explorer needs no torch; what does is imported when it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from servelab.lazy import imported_on_use
from servelab.thread_safety.explorer.exploration import Exploration, explore, replay_schedule
from servelab.thread_safety.explorer.interleaving import CriticalSection, Ending, Run
from servelab.thread_safety.explorer.schedules import PYTHON

if TYPE_CHECKING:
    from servelab.thread_safety import specimens
    from servelab.thread_safety.auditing.audit import audit
    from servelab.thread_safety.auditing.report import AuditReport, Kind, Verdict
    from servelab.thread_safety.hammering import HammerReport, hammer

__all__ = [
    "PYTHON",
    "AuditReport",
    "CriticalSection",
    "Ending",
    "Exploration",
    "HammerReport",
    "Kind",
    "Run",
    "Verdict",
    "audit",
    "explore",
    "hammer",
    "replay_schedule",
    "specimens",
]

_find = imported_on_use(
    __name__,
    dict.fromkeys(("AuditReport", "Kind", "Verdict"), f"{__name__}.auditing.report")
    | {"audit": f"{__name__}.auditing.audit"}
    | dict.fromkeys(("HammerReport", "hammer"), f"{__name__}.hammering"),
)


def __getattr__(name: str) -> Any:
    return import_module(f"{__name__}.specimens") if name == "specimens" else _find(name)
