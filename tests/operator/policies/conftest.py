"""The ledgers that the policies' tables are about: ten steps in three phases, the teacher in the last."""

from collections.abc import Callable
from typing import Any

import pytest

from bitnet_crds import Plan, parse_run, plan
from bitnet_crds.adjustments import Adjustments
from small_run import small_document


@pytest.fixture(scope="session")
def ledger() -> Callable[..., Plan]:
    """The ledger of the small run with these fields of its spec, after these adjustments."""

    def planned(adjustments: Adjustments | None = None, **spec: Any) -> Plan:
        return plan(parse_run(small_document(**spec)).spec, adjustments or Adjustments())

    return planned
