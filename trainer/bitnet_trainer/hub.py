"""The Hugging Face hub: whether it can be reached at all."""

import time

from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import get_session, httpx  # type: ignore[attr-defined]  # exported lazily

TIMEOUT = 5.0
"""Seconds that it may take to answer at all."""
PAUSES = (2.0, 4.0)
"""Seconds between tries to reach it."""


def answers() -> bool:
    """Whether the hub can be reached.

    huggingface_hub asks for each file anew and waits minutes for a hub that is silent; here that is known
    first, within half a minute.
    """
    for pause in (*PAUSES, None):
        try:
            get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
        except OfflineModeIsEnabled:
            return False
        except httpx.TransportError:
            if pause is not None:
                time.sleep(pause)
        else:
            return True
    return False
