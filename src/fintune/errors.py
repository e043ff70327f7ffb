"""The errors a user can cause. The command line prints their message alone, without a traceback."""


class FintuneError(Exception):
    """A mistake the user can mend; its message names the field, the value and the fix."""


class ConfigError(FintuneError):
    """A recipe that cannot be run: an unknown key, a wrong value, an impossible combination."""
