"""The exception for wrong user input, as opposed to a defect of Duet."""

from common.secrets import redact


class InputError(ValueError):
    """A configuration, data row, checkpoint or argument is invalid.

    The message names the key, or the file and line, the value and what is allowed. The command line prints it without a
    traceback and exits with code 2. Secrets of the environment are redacted. The message is one line of printable
    characters: line breaks become spaces, other control characters are escaped.
    """

    def __init__(self, message: str) -> None:
        words = " ".join(redact(message).split())
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in words))
