"""Audits: may this model be shared between threads?"""

from servelab.thread_safety.audit.audit import audit
from servelab.thread_safety.audit.report import AuditReport, Finding, Interference, Kind, Verdict

__all__ = ["AuditReport", "Finding", "Interference", "Kind", "Verdict", "audit"]
