"""One profile of hypothesis for the whole suite: no deadlines on shared machines, the same examples each time in CI."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "suite", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
