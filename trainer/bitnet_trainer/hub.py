"""The Hugging Face hub: whether it can be reached, and whether what it did not answer may be had later."""

import time

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, httpx  # type: ignore[attr-defined]  # exported lazily

TIMEOUT = 5.0
"""Seconds that it may take to answer at all."""
PAUSES = (2.0, 4.0)
"""Seconds between tries to reach it."""


_PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses of a server that may answer another time, the same that huggingface_hub tries again."""


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


def is_transient(error: BaseException, *, out_of_reach: bool = False) -> bool:
    """Whether another try may succeed after an error of a library that asked the hub.

    `out_of_reach`: whether it was found not to answer at all. Where it is not to be asked, nothing passes.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, HfHubHTTPError):
            return seen.response.status_code in _PASSING
        if isinstance(seen, httpx.TransportError):
            return True
        seen = seen.__cause__ or seen.__context__
    return out_of_reach and not constants.HF_HUB_OFFLINE
