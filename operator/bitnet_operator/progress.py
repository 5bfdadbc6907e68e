"""Asking rank 0 how far it is. Training never waits for the answer, and goes on when nobody asks."""

import logging

import aiohttp
from pydantic import ValidationError

from bitnet_crds import Progress
from bitnet_crds.protocol import PROGRESS_PORT

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 3.0


async def ask(http: aiohttp.ClientSession, address: str, port: int = PROGRESS_PORT) -> Progress | None:
    """What the process at this IP address answers; None while it does not, as before it has come up."""
    host = f"[{address}]" if ":" in address else address
    url = f"http://{host}:{port}/progress"
    try:
        async with http.get(url, timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)) as response:
            response.raise_for_status()
            return Progress.model_validate_json(await response.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        log.debug("%s does not answer: %r", url, error)
    except ValidationError as error:
        log.warning("%s answered what is no progress: %s", url, error)
    return None
