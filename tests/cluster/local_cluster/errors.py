"""What can go wrong with a local cluster, each error naming what to do about it."""

from __future__ import annotations

from pathlib import Path

INSTALL_SCRIPT = "scripts/install-cluster-prerequisites.sh"


class LocalClusterError(Exception):
    """Base of every error this package raises."""


class MissingRequirement(LocalClusterError):
    """The machine lacks something the cluster needs."""

    def __init__(self, what: str, mend: str = f"run {INSTALL_SCRIPT}") -> None:
        super().__init__(f"{what}: {mend}")


class CommandFailed(LocalClusterError):
    """A command ended with an error; carries what it wrote to stderr."""

    def __init__(self, command: list[str], exit_code: int, stderr: str) -> None:
        self.command = command
        self.exit_code = exit_code
        self.stderr = stderr
        super().__init__(f"`{' '.join(command)}` ended with {exit_code}:\n{stderr.strip()}")


class ComponentFailed(LocalClusterError):
    """A component of the cluster ended early or never became ready; shows the tail of its log."""

    def __init__(self, name: str, reason: str, log: Path, lines: int = 20) -> None:
        self.name = name
        tail = log.read_text(errors="replace").splitlines()[-lines:] if log.exists() else ["(no log)"]
        super().__init__("\n".join([f"{name} {reason}; the end of {log}:", *(f"  {line}" for line in tail)]))
