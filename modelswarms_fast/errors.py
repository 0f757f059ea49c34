"""The one exception that a user can cause."""


class InputError(ValueError):
    """Something the user gave cannot be used: one sentence that names it and the remedy.

    The command line prints the message and exits with status 2, without a traceback.
    """
