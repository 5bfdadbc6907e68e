"""How property tests run: anew each time for a developer, the same each time in continuous integration.

A chance find should be a developer's, not the failure of a change that has nothing to do with it. And what
Triton's kernels run on, which has to be said before anything imports Triton.
"""

import os
from pathlib import Path

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
# How long an example takes is said by what else the machine does.
settings.register_profile("developer", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "developer")

if not Path("/dev/nvidiactl").exists():
    # Without a GPU kernels are interpreted, number by number.
    os.environ.setdefault("TRITON_INTERPRET", "1")
