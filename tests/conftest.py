"""Settings shared by all tests."""

from hypothesis import HealthCheck, settings

# No deadline: how fast this machine happens to be today decides no test.
settings.register_profile(
    "servelab", deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("servelab")
