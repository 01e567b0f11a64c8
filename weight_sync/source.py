"""Source of the weights to send: parameters in groups, of which at most one is gathered at a time."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from weight_sync.senders import FileEntry
from weight_sync.update import load_unit

GROUP_BYTES = 256 << 20
"""Maximum size of a group, unless a single parameter is larger."""


def named_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every parameter under each of its names.

    Tied weights appear under every name: an engine that does not receive `lm_head.weight` silently keeps its old output
    layer, and all log-probabilities are wrong.
    """
    yield from model.named_parameters(remove_duplicate=False)


def updated_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters that may have changed since the checkpoint, and others of their units, under all names."""
    named = dict(named_weights(model))
    units = {load_unit(name) for name, parameter in named.items() if parameter.requires_grad}
    moved = {id(parameter) for name, parameter in named.items() if load_unit(name) in units}
    return {name: parameter for name, parameter in named.items() if id(parameter) in moved}


class WeightSource:
    """The weights of a model that may have changed, or its adapters.

    Under ZeRO-3 iteration is collective: all ranks must iterate to the end. A group is gathered when it is reached and
    released before the next, so no rank ever holds the complete model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sharded: bool,
        named: Mapping[str, nn.Parameter] | None = None,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        """Plan the groups.

        Args:
            sharded: True if ZeRO-3 partitions the parameters.
            named: Parameters to send, by name. None: all weights that may have changed.
        """
        self._sharded = sharded
        self.whole = named is None and len(updated_parameters(model)) == len(dict(named_weights(model)))
        """True if every parameter is included."""
        named = updated_parameters(model) if named is None else named
        names: dict[nn.Parameter, list[str]] = {}
        for name, parameter in named.items():
            names.setdefault(parameter, []).append(name)
        self._groups: list[dict[nn.Parameter, list[str]]] = []
        filled = 0
        for parameter, own in names.items():
            size = sum(FileEntry.from_tensor(name, parameter).size for name in own)
            if not self._groups or filled + size > group_bytes:
                self._groups.append({})
                filled = 0
            self._groups[-1][parameter] = own
            filled += size
        self.groups = [
            [FileEntry.from_tensor(name, parameter) for parameter, own in group.items() for name in own]
            for group in self._groups
        ]
        """Metadata of the tensors of each group."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors of each group by name. They are valid until the next group is requested."""
        for group in self._groups:
            with self._gathered(list(group)):
                found = {name: parameter.data for parameter, own in group.items() for name in own}
                yield found
                found.clear()  # otherwise the consumer would hold this group while the next is gathered

    def _gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager:
        if not self._sharded:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters)
