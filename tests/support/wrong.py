"""How a run is refused, by the contract and by an API server."""

from dataclasses import dataclass

from written_runs import Changes


@dataclass(frozen=True)
class Wrong:
    """A run that is refused, and how."""

    changes: Changes
    field: str
    """The field that the contract blames."""
    what: str
    """Words of what it finds."""
    fix: str
    """Words of the mend."""
    server_field: str
    """The field that the API server blames."""
    server_words: str
    """Words of its message."""
