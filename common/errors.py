"""The one exception that means "the user's input is wrong", not "Duet is broken"."""

from common.secrets import redact


class InputError(ValueError):
    """A configuration, data row, checkpoint or argument that cannot be used.

    The message is one sentence naming the key or the file and line, the value found and what is allowed; the secrets of
    the environment are hidden in it. The command line prints it without a traceback and exits with code 2. It is one
    line of printable characters whatever was in the input: line breaks become spaces, the rest that a terminal would
    obey is spelled out.
    """

    def __init__(self, message: str) -> None:
        words = " ".join(redact(message).split())
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in words))
