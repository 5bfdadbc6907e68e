"""Makes tests/cluster/local_cluster importable; these tests start no cluster and need no root."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cluster"))
