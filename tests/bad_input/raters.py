"""Raters that a configuration can name wrongly."""


class Picky:
    """A class with one required and one optional argument."""

    name = "picky"
    version = "1"

    def __init__(self, scale: float, *, offset: float = 0.0) -> None:
        raise AssertionError("is looked at before a run, not built")

    def rate(self, spoken) -> float:
        raise NotImplementedError


class Mute:
    """A class without a method `rate`."""

    name = "mute"


NUMBER = 5
