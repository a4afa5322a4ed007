"""Settings that must stand before torch is imported, and one Hypothesis profile for all tests."""

from __future__ import annotations

import os

# spinning threads of several test processes fight over few cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hypothesis import HealthCheck, settings

settings.register_profile("blockzo", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("blockzo")
