"""The one exception that means "the user's input is wrong", not "Duet is broken"."""


class InputError(ValueError):
    """A configuration, data row, checkpoint or argument that cannot be used.

    The message is one sentence naming the key or the file and line, the value found and what is allowed. The command
    line prints it without a traceback and exits with code 2.
    """
