"""A checkpoint's tokenizer as the `tokenizers` library has it, also where it was released as tiktoken's ranks."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from speech.errors import InputError
from speech.files import parsed, text

TOKENIZER = "tokenizer.json"
RANKS = ("tokenizer.model", "tiktoken.model")
"""Names under which tiktoken's ranks are released: a token in base64 and its rank, a line each."""


def tokenizer_of(directory: Path, division: str | None = None) -> Tokenizer:
    """division: how a text is divided before tokens are merged, for ranks; a regular expression.

    Raises InputError when there is none, or one that cannot be read.
    """
    file = directory / TOKENIZER
    if file.is_file():
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more exact
            raise InputError(f"{file} is not a tokenizer: {error}") from error
    for name in RANKS:
        if division is not None and (directory / name).is_file():
            return _from_ranks(directory / name, division, directory / "tokenizer_config.json")
    raise InputError(
        f"{directory} has no tokenizer: none of {', '.join((TOKENIZER, *(RANKS if division else ())))} is there"
    )


def _from_ranks(ranks: Path, division: str, settings: Path) -> Tokenizer:
    """Byte-pair encoding from tiktoken's ranks, with the added tokens that tokenizer_config.json names by id."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    added = parsed(text(settings), str(settings)).get("added_tokens_decoder", {})
    if not added:
        raise InputError(f"{settings} names no added tokens (added_tokens_decoder), without which {ranks} has no roles")
    try:
        tokenizer = TikTokenConverter(vocab_file=str(ranks), pattern=division).converted()
    except Exception as error:  # a file that is no list of ranks fails in many ways
        raise InputError(f"{ranks} holds no ranks as tiktoken writes them: {error!r}") from error
    by_id = {int(number): token for number, token in sorted(added.items(), key=lambda item: int(item[0]))}
    tokenizer.add_tokens(
        [AddedToken(token["content"], special=bool(token.get("special")), normalized=False) for token in by_id.values()]
    )
    for number, token in by_id.items():
        if (found := tokenizer.token_to_id(token["content"])) != number:
            raise InputError(f"{settings}: {token['content']!r} is {number} there, but would become {found}")
    return tokenizer
