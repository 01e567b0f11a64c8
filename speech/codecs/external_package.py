"""Other people's code and weights in a folder: whether all is there, how it is imported, which version it is.

Importable without torch, as the adapters are: a configuration can be checked where nothing is decoded.
"""

import hashlib
import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import check_exists

DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
BLOCK = 1 << 16
BLOCKS = 16
"""Of each file, evenly spread, that its version is taken from: a decoder has gigabytes of weights, and every member
that loads it asks. The last block of what `torch.save` writes lists the checksums of all tensors."""


class CodecFailed(RuntimeError):
    """A codec's own code raised, or gave what is no sound or no codes of its codebook."""


class ExternalPackage:
    """A folder with code, and weights beside it or below."""

    def __init__(self, root: Path, title: str, modules: Sequence[str]) -> None:
        """title: what messages call it. modules: the names that its own modules have at the top."""
        self.root, self.title, self._modules = root, title, modules

    def need(self, files: Iterable[str]) -> list[Path]:
        """Paths of files, given relative to the folder. Raises InputError that names those that are not there."""
        paths = {name: self.root / name for name in files}
        if lacking := [name for name, path in paths.items() if not check_exists(path)]:
            raise InputError(
                f"reward.codec.kwargs.path: {self.root} has no {', '.join(lacking)}, which {self.title} needs; "
                "docs/own-model.md says what must lie there"
            )
        return list(paths.values())

    @contextmanager
    def importing(self, *folders: str) -> Iterator[None]:
        """Within, modules are looked for in these folders of the package first; those of another package that have the
        same names give way. Raises InputError for one that is not installed."""
        for top in self._modules:
            known = [name for name in sys.modules if name == top or name.startswith(f"{top}.")]
            if not all(self._holds(sys.modules[name]) for name in known):
                for name in known:
                    del sys.modules[name]
        before = list(sys.path)
        sys.path[:0] = [str(self.root / folder) for folder in folders]
        importlib.invalidate_caches()
        try:
            yield
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError)
            said = f"needs the module {error.name!r}, which is not there" if missing else f"is not imported: {error}"
            raise InputError(
                f"reward.codec.kwargs.path: the code of {self.title} in {self.root} {said}; install what its "
                "authors' requirements name"
            ) from error
        finally:
            sys.path[:] = before

    def module(self, name: str) -> Any:
        """A module of the package, within `importing`."""
        return importlib.import_module(name)

    def _holds(self, module: ModuleType) -> bool:
        file = getattr(module, "__file__", None)
        places = [file] if file else list(getattr(module, "__path__", []))
        return any(Path(place).resolve().is_relative_to(self.root.resolve()) for place in places)


def version_of(name: str, files: Sequence[Path], root: Path) -> str:
    """The name, and a hash over the files' names below `root`, sizes and some of their content: other weights have
    another version. Reads `BLOCKS` blocks of each file."""
    found = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        label = path.relative_to(root) if path.is_relative_to(root) else path.name
        found.update(f"{label}\0{size}\0".encode())
        with path.open("rb") as file:
            for start in sorted({round(part * max(0, size - BLOCK) / (BLOCKS - 1)) for part in range(BLOCKS)}):
                file.seek(start)
                found.update(file.read(BLOCK))
    return f"{name}-{found.hexdigest()[:12]}"


def check_device(device: object) -> str:
    """A device's name. Raises InputError."""
    if not isinstance(device, str) or not DEVICE.fullmatch(device):
        raise InputError(
            f"reward.codec.kwargs.device: {device!r} is not possible; allowed: auto (a GPU where the process has "
            "one), cpu, cuda, cuda:NUMBER"
        )
    return device


def device_of(name: str) -> Any:
    """The torch.device for a name. Raises InputError for a GPU that this process does not have."""
    import torch

    check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"reward.codec.kwargs.device: {name}, but this process has {torch.cuda.device_count()} GPUs; set "
            "reward.decoders.num_gpus (or reward.num_gpus without decoders), or device: cpu"
        )
    return device


@contextmanager
def sampled_codes(codes: np.ndarray, device: Any) -> Iterator[None]:
    """Within, what torch draws follows from these codes alone, and nothing is differentiated.

    Flow matching starts from noise. The same reply must get the same score on every decoder, and whatever was decoded
    before it.
    """
    import torch

    seed = int.from_bytes(hashlib.sha256(np.ascontiguousarray(codes).tobytes()).digest()[:8]) >> 1
    gpus = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), torch.no_grad():
        torch.manual_seed(seed)
        yield


def checked_codes(codes: Any, codebook: int, title: str) -> np.ndarray:
    """int64 [S] codes of a codebook. Raises CodecFailed for others."""
    found = np.asarray(codes).reshape(-1)
    if not len(found):
        raise CodecFailed(f"{title}: no codes")
    if not np.issubdtype(found.dtype, np.integer) or found.min() < 0 or found.max() >= codebook:
        raise CodecFailed(f"{title}: codes are whole numbers in [0, {codebook}); got {found!r:.80}")
    return found.astype(np.int64)


def samples_of(sound: Any, title: str) -> np.ndarray:
    """float32 [T] in [-1, 1] of a tensor or array with one channel. Raises CodecFailed for what is no sound."""
    array = sound.detach().float().cpu().numpy() if hasattr(sound, "detach") else np.asarray(sound)
    if array.size != max(array.shape, default=0) or not array.size:
        raise CodecFailed(f"{title}: it gave an array of shape {array.shape}, not one channel of sound")
    flat = array.reshape(-1).astype(np.float32)
    if not np.isfinite(flat).all():
        raise CodecFailed(f"{title}: it gave samples that are not finite")
    return np.clip(flat, -1.0, 1.0)


@contextmanager
def error_text(title: str, doing: str) -> Iterator[None]:
    """Names the codec in whatever its own code raises. doing: what it was asked to do."""
    try:
        yield
    except (CodecFailed, InputError):
        raise
    except Exception as error:  # other people's code may raise anything
        raise CodecFailed(f"{title} failed while {doing}: {type(error).__name__}: {error}") from error
