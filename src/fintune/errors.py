"""The errors a user can cause, and the command line's exit codes; it prints only an error's message."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Sequence

from fintune.extras import install_command

DONE, FAILED, MISTAKE = 0, 1, 2
EXIT_CODES = {
    DONE: "done",
    FAILED: "a check found something wrong (doctor, --strict, reproduce), or machine or network failed",
    MISTAKE: "the command, the recipe, the data or the model cannot be used as given",
    130: "stopped by Ctrl-C; 143: stopped by SIGTERM",
}
"""What the exit codes of every command mean."""


class FintuneError(Exception):
    """A mistake the user can fix; its message names the field, the value and the fix.

    Attributes:
        plain: the message without recipe keys and flags, for a reader in a browser.
    """

    code = FAILED
    """The exit code of a command that ends with this error."""

    def __init__(self, message: str = "", plain: str = "") -> None:
        super().__init__(message)
        self.plain = plain or message


class CheckFailed(FintuneError):
    """A check that the user asked for found something wrong."""


class ConfigError(FintuneError):
    """A recipe that cannot be run: an unknown key, a wrong value, an impossible combination."""

    code = MISTAKE


class DataError(FintuneError):
    """Data that cannot be used: a missing file or column, an unknown label, an empty split."""

    code = MISTAKE


class ModelError(FintuneError):
    """A base model, adapter or checkpoint that cannot be loaded or used."""

    code = MISTAKE


class MissingExtraError(FintuneError):
    """An optional part is not installed; the message has the command that installs it."""

    code = MISTAKE

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional part: run  {install_command(extra)}")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM in a job that can be resumed; the message says what is saved.

    Attributes:
        flag: the flag that makes the same command resume; "" if none is needed.
        command: another command that resumes, if it is not the same one.
        number: the signal's number.
    """

    def __init__(
        self,
        message: str,
        cause: BaseException | None = None,
        *,
        flag: str = "",
        command: str = "",
        number: int = 0,
    ) -> None:
        super().__init__(message)
        self.flag = flag
        self.command = command
        self.number = number or getattr(cause, "number", signal.SIGINT)


def hint(wrong: str, valid: Sequence[str]) -> str:
    """The end of a sentence on a wrong name: the most similar valid one, else all valid ones."""
    near = difflib.get_close_matches(wrong, valid, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; valid are: {', '.join(valid)}"


def first_line(error: BaseException) -> str:
    """The first line of a library's message, or the error's name if there is no message."""
    return (str(error).strip() or repr(error)).splitlines()[0]
