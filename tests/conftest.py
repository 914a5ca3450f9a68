"""One profile of hypothesis for the whole suite: no deadlines on shared machines, the same examples each time in CI."""

import os
import tempfile

from hypothesis import HealthCheck, settings

settings.register_profile(
    "suite", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
# What commands keep from one to the next is no part of whoever runs the tests.
os.environ.setdefault("TRAINWRIGHT_HOME", tempfile.mkdtemp(prefix="trainwright-tests-"))
