"""The exceptions that end a run with one sentence."""


class InputError(ValueError):
    """Something the user gave cannot be used: one sentence that names it and the remedy.

    The command line prints the message and exits with status 2, without a traceback.
    """


class EngineError(RuntimeError):
    """An engine failed while it worked, and cannot go on: one sentence that says what happened.

    The command line treats it as it does an InputError.
    """
