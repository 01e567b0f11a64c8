"""Where weights to be sent come from: the parameters in groups, of which at most one is whole at a time."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from weight_sync.senders import FileEntry
from weight_sync.update import unit

GROUP_BYTES = 256 << 20
"""Of a group at most, unless a single parameter is larger."""


def named_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter under every name it has.

    Tied weights come under each of their names: an engine that misses `lm_head.weight` keeps its old output layer
    without complaint, and all log-probabilities are quietly wrong.
    """
    yield from model.named_parameters(remove_duplicate=False)


def updated_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that can have changed since the checkpoint, and what shares a unit with them, under all names."""
    named = dict(named_weights(model))
    units = {unit(name) for name, parameter in named.items() if parameter.requires_grad}
    moved = {id(parameter) for name, parameter in named.items() if unit(name) in units}
    return {name: parameter for name, parameter in named.items() if id(parameter) in moved}


class WeightSource:
    """The weights of a model that can have changed, or its adapters.

    Under ZeRO-3 going over them is a collective operation: all ranks do it, each to the end. A group is gathered when
    it is reached and released when the next is, so that no rank ever holds the whole model.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sharded: bool,
        named: Mapping[str, nn.Parameter] | None = None,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        """sharded: whether ZeRO-3 has partitioned the parameters. named: what is to be sent, by name, where it is not
        the weights themselves."""
        self._sharded = sharded
        self.whole = named is None and len(updated_parameters(model)) == len(dict(named_weights(model)))
        """Whether every parameter is among them."""
        named = updated_parameters(model) if named is None else named
        names: dict[nn.Parameter, list[str]] = {}
        for name, parameter in named.items():
            names.setdefault(parameter, []).append(name)
        self._groups: list[dict[nn.Parameter, list[str]]] = []
        filled = 0
        for parameter, own in names.items():
            size = sum(FileEntry.of(name, parameter).size for name in own)
            if not self._groups or filled + size > group_bytes:
                self._groups.append({})
                filled = 0
            self._groups[-1][parameter] = own
            filled += size
        self.groups = [
            [FileEntry.of(name, parameter) for parameter, own in group.items() for name in own]
            for group in self._groups
        ]
        """What will come: the tensors of each group."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The tensors of one group after the other, by name; each group until the next is asked for."""
        for group in self._groups:
            with self._gathered(list(group)):
                found = {name: parameter.data for parameter, own in group.items() for name in own}
                yield found
                found.clear()  # or whoever is given it would hold the group while the next is gathered

    def _gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager:
        if not self._sharded:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters)
