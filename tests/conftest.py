"""Settings shared by all tests."""

import os

from hypothesis import HealthCheck, settings

# Of several processes side by side each has one core, and torch, which reads this when loaded, one thread.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: how fast this machine happens to be today decides no test.
settings.register_profile(
    "servelab", deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("servelab")
