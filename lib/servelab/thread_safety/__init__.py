"""Is it safe to call one model from several threads? Try it, prove it, look inside.

Import from here: `from servelab import thread_safety`. Knows models, and nothing of queues and engines.
"""

from servelab.thread_safety import specimens
from servelab.thread_safety.audit import AuditReport, Kind, Verdict, audit
from servelab.thread_safety.hammer import HammerReport, hammer
from servelab.thread_safety.interleavings import (
    PYTHON,
    CriticalSection,
    Ending,
    Exploration,
    Run,
    explore,
    replay,
)

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
    "replay",
    "specimens",
]
