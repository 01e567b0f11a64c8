"""Redacts keys and passwords of the environment from everything that is written or printed."""

import os
import re
from collections.abc import Callable, Mapping
from urllib.parse import quote

STARS = "***"
MIN_LENGTH = 8
"""Shorter values are not redacted: "true" or "1" would match half of every text."""
_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?(_|$)", re.IGNORECASE)
"""Names of environment variables with secrets: OPENAI_API_KEY, HF_TOKEN. Not: TOKENIZERS_PARALLELISM."""
_FIELD = re.compile(
    r"((api|access|auth|private|bearer)_?(key|token)|secret|password|passwd|credential)s?$", re.IGNORECASE
)
_KNOWN = re.compile(
    r"\b(sk-(?=[\w-]*\d)[\w-]{12,}|hf_\w{8,}|gh[pousr]_\w{8,}|github_pat_\w{8,}|glpat-[\w-]{8,}|xox[abprs]-[\w-]{8,}|AKIA[0-9A-Z]{12,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|://[^\s/:@]+:[^\s/@]+@|\bBearer\s+[\w.~+/=-]{16,}"
)
"""Keys of well-known services, and URLs with a password."""
_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
"""Names of environment variables."""


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Replace secrets of the environment (default: this process's), and text in the form of a key, by ***."""
    return hide_secrets(environment)(text)


def hide_secrets(environment: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """Return `redact` for many texts: it scans the environment once, which takes longer than most texts."""
    values = _values(os.environ if environment is None else environment)

    def hide(text: str) -> str:
        for value in values:
            text = text.replace(value, STARS)
        return _KNOWN.sub(STARS, text)

    return hide


def find_secret(field: str, value: str, environment: Mapping[str, str] | None = None) -> str | None:
    """Return why a configuration value is a secret, without repeating it; None if it is not.

    field: name of the key, without its sections. A key named like a secret may hold only the name of an environment
    variable (api_key: OPENAI_API_KEY).
    """
    variables = os.environ if environment is None else environment
    if len(value) >= MIN_LENGTH:  # a shorter one has no room for a secret
        for name, secret in variables.items():
            if _VARIABLE.search(name) and len(secret) >= MIN_LENGTH and secret in value:
                return f"holds the value of the environment variable {name}; write its name instead"
    if _KNOWN.search(value) or (_FIELD.search(field) and value and not _NAME.fullmatch(value)):
        return "looks like a secret; put it in the environment and name the variable here"
    return None


def _values(environment: Mapping[str, str]) -> list[str]:
    """Return secrets in the forms in which they may occur, longest first: one may be a prefix of another."""
    found = {value for name, value in environment.items() if _VARIABLE.search(name) and len(value) >= MIN_LENGTH}
    return sorted(found | {quote(value, safe="") for value in found}, key=len, reverse=True)
