"""Keys and passwords: they live in the environment, and are kept out of everything that is written or printed."""

import os
import re
from collections.abc import Callable, Mapping
from urllib.parse import quote

STARS = "***"
SHORTEST = 8
"""Values shorter than this are not hidden: "true" or "1" would take half of every text with them."""
_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?(_|$)", re.IGNORECASE)
"""Names of environment variables that hold a secret: OPENAI_API_KEY, HF_TOKEN. Not: TOKENIZERS_PARALLELISM."""
_FIELD = re.compile(
    r"((api|access|auth|private|bearer)_?(key|token)|secret|password|passwd|credential)s?$", re.IGNORECASE
)
_KNOWN = re.compile(
    r"\b(sk-(?=[\w-]*\d)[\w-]{12,}|hf_\w{8,}|gh[pousr]_\w{8,}|github_pat_\w{8,}|glpat-[\w-]{8,}|xox[abprs]-[\w-]{8,}|AKIA[0-9A-Z]{12,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|://[^\s/:@]+:[^\s/@]+@|\bBearer\s+[\w.~+/=-]{16,}"
)
"""What keys of well-known services look like, and addresses with a password in them."""
_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
"""What names of environment variables look like."""


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with *** for every secret of the environment (this process's unless given), and for what is written
    like one."""
    return hide_secrets(environment)(text)


def hide_secrets(environment: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """`redact` for many texts: the environment is looked through once, which takes longer than most texts do."""
    values = _values(os.environ if environment is None else environment)

    def hide(text: str) -> str:
        for value in values:
            text = text.replace(value, STARS)
        return _KNOWN.sub(STARS, text)

    return hide


def find_secret(field: str, value: str, environment: Mapping[str, str] | None = None) -> str | None:
    """Why a value of the configuration must not stand there, in words that do not repeat it; None when it may.

    field: its name, without the sections above it. A field that is named like a secret may hold the name of an
    environment variable (api_key: OPENAI_API_KEY), nothing else.
    """
    variables = os.environ if environment is None else environment
    if len(value) >= SHORTEST:  # a shorter one has no room for a secret
        for name, secret in variables.items():
            if _VARIABLE.search(name) and len(secret) >= SHORTEST and secret in value:
                return f"holds the value of the environment variable {name}; write its name instead"
    if _KNOWN.search(value) or (_FIELD.search(field) and value and not _NAME.fullmatch(value)):
        return "looks like a secret; put it in the environment and name the variable here"
    return None


def _values(environment: Mapping[str, str]) -> list[str]:
    """Secrets as they may stand in a text, longest first: one may begin another."""
    found = {value for name, value in environment.items() if _VARIABLE.search(name) and len(value) >= SHORTEST}
    return sorted(found | {quote(value, safe="") for value in found}, key=len, reverse=True)
