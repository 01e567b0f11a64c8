"""How large a YAML text gets when its anchors are written out, before anything does so.

a: &a [x, x]
b: &b [*a, *a]        nine such lines of nine are a gigabyte in memory; [*b] inside b never ends
"""

import yaml

LARGEST = 100_000
"""Values of a configuration, anchors written out."""


def refuse_endless(text: str) -> None:
    """Raises ValueError when anchors hold themselves, or when there would be more than `LARGEST` values."""
    if "*" not in text:  # no anchor is used
        return
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    sizes: dict[int, int] = {}
    _measure(root, sizes, set())


def _measure(node: yaml.Node | None, sizes: dict[int, int], above: set[int]) -> int:
    """Values in a node. sizes: of those measured; above: those that hold this one."""
    if id(node) in above:
        raise ValueError(f"an anchor holds itself, at line {node.start_mark.line + 1}" if node else "")
    if id(node) not in sizes:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_measure(part, sizes, above | {id(node)}) for part in parts)
        if sizes[id(node)] > LARGEST:
            raise ValueError(f"more than {LARGEST:,} values when its anchors are written out")
    return sizes[id(node)]
