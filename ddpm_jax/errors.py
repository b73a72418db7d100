"""The exceptions that `main` prints without a traceback."""


class UserError(Exception):
    """A user's mistake: what was wrong, what was found, and what to do, in one paragraph. Exit code 2."""

    exit_code = 2


class Diverged(UserError):
    """Training left the finite numbers. Exit code 3."""

    exit_code = 3
