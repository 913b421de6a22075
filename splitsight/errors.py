"""The one exception type that a user is meant to read.

Everything that can go wrong because of *input* (a missing file, an unknown name, a peer that is not
there) is raised as :class:`UserError`; the command line prints its message as one sentence and exits
non-zero. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

__all__ = ["UserError", "unknown_name"]


class UserError(Exception):
    """A problem that the user can mend; the message is one sentence that says how.

    Args:
        message: what is wrong and what to do about it.
        code: process exit status for the command line, 1…125.
    """

    def __init__(self, message: str, *, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


def unknown_name(kind: str, name: str, known: list[str]) -> UserError:
    """The error for a name that no registry holds; lists the names that exist."""
    return UserError(f"unknown {kind} '{name}': choose one of {', '.join(sorted(known))}")
