"""What a Hugging Face checkpoint may bring: weights as safetensors, and code of its own only where that is trusted.

A checkpoint's tokenizer as the `tokenizers` library has it, also where it was released as tiktoken's ranks.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from common.errors import InputError
from common.files import parse_json, read_text

_DESCRIPTIONS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
"""Files in which `auto_map` names code that comes with the checkpoint."""


_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_checkpoint(path: Path, *, trust_remote_code: bool) -> list[Path]:
    """The files of weights of a checkpoint, by name. Nothing of it is executed or unpickled.

    Raises InputError when there are none as safetensors, or when the checkpoint names code of its own and that is not
    trusted.
    """
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickled = [file.name for pattern in _PICKLED for file in sorted(path.glob(pattern))]
        instead = (
            f", only {pickled[0]}, which could run code when it is read; save it again with safe_serialization=True"
            if pickled
            else ""
        )
        raise InputError(f"model.path: {path} holds no *.safetensors file{instead}")
    if not trust_remote_code:
        for name in _DESCRIPTIONS:
            if code := _own_code(path / name):
                raise InputError(
                    f"model.path: {path / name} wants code of its own to be run (auto_map: {code}); set "
                    "model.trust_remote_code=true if you trust whoever wrote it"
                )
    return files


def _own_code(file: Path) -> str:
    if not file.is_file():
        return ""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model.path: {file} is not JSON: {error}") from error
    named = found.get("auto_map") if isinstance(found, dict) else None
    return ", ".join(map(str, named.values() if isinstance(named, dict) else [named])) if named else ""


TOKENIZER = "tokenizer.json"


RANKS = ("tokenizer.model", "tiktoken.model")
"""Names under which tiktoken's ranks are released: a token in base64 and its rank, a line each."""


def load_tokenizer(directory: Path, division: str | None = None) -> Tokenizer:
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

    added = parse_json(read_text(settings), str(settings)).get("added_tokens_decoder", {})
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
