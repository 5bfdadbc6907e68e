"""What a command of the trainer does with an error: one paragraph and the exit code that says which."""

import logging
import sys
from collections.abc import Callable

from transformers.utils import logging as transformers_logging

from bitnet_trainer.errors import TrainerError
from bitnet_trainer.outcome import exit_code_of

INTERRUPTED = 130
"""As a shell reports a program that Ctrl-C ended."""


def run_command(action: Callable[[], None]) -> int:
    """Runs it, quietly but for what it prints; gives its exit code, `INTERRUPTED` after Ctrl-C. What nobody
    foresaw is raised."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        action()
    except TrainerError as error:
        print(error, file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0
