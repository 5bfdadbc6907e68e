"""How property tests run: anew each time for a developer, the same each time in continuous integration.

A chance find should be a developer's, not the failure of a change that has nothing to do with it.
"""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")
