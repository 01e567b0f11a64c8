"""What a configuration names by "module:Class": raters, and the codec."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from speech.codecs.base import Codec


@dataclass(frozen=True, kw_only=True)
class ClassSpec:
    """Something named in the configuration."""

    target: str
    """"module:Class"."""
    kwargs: dict[str, Any]
    name: str = ""
    """What a rater's score is called."""

    def build(self) -> Any:
        """Calls the class. Raises InputError when the name leads nowhere."""
        return load_object(self.target)(**self.kwargs)


def load_object(name: str) -> Any:
    """The object that "module:attribute" names."""
    module, separator, attribute = name.partition(":")
    if not separator:
        raise InputError(f"{name!r} is not of the form module:Class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module of the user's own raises when it is imported
        raise InputError(f"{name!r} cannot be loaded: {str(error) or type(error).__name__}") from error


def build_codec(target: str, kwargs: dict[str, Any]) -> Codec:
    """Loads a codec: `path` says where it is, further arguments are its class's own."""
    further = {name: value for name, value in kwargs.items() if name != "path"}
    return load_object(target).load(Path(kwargs["path"]), **further)
