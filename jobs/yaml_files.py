"""YAML that others wrote: a recipe, an override, or a file of `branchwise fit`.

Invariant: what comes back is about as large as what was written. Aliases that multiply, a depth
that no such file has and a key that stands twice are refused before anything is built of them.
"""

from collections.abc import Iterable
from pathlib import Path

import yaml

from search.errors import one_line

MAX_BYTES = 64 << 20
MAX_VALUES = 1_000_000
MAX_DEPTH = 50
MAX_NUMBER_LENGTH = 20
_WHOLE_NUMBER = "tag:yaml.org,2002:int"
_TOO_DEEP = f"it is nested more than {MAX_DEPTH} deep: write it flat"


def read_yaml(path: Path) -> object:
    """What a file holds; raises OSError, or ValueError with one line that says what is wrong."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB: give another file")
    return parse_yaml(content.decode("utf-8"))


def parse_yaml(text: str) -> object:
    """What a text says; raises ValueError with one line that says what is wrong."""
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _size(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(one_line(error)) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError):
        # PyYAML's own way to say that a value is not what its tag promises.
        raise ValueError("a value is not of the type that its tag names: remove the tag") from None
    finally:
        if loader is not None:
            loader.dispose()


def _size(node: yaml.Node, sizes: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node makes, aliases written out, and how deep; raises ValueError."""
    if id(node) not in sizes:
        sizes[id(node)] = None
        found = [_size(part, sizes) for part in _parts(node)]
        values = 1 + sum(count for count, _ in found)
        depth = 1 + max((depth for _, depth in found), default=0)
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if values > MAX_VALUES:
            raise ValueError(f"its aliases make more than {MAX_VALUES} values: write them out")
        sizes[id(node)] = values, depth
    size = sizes[id(node)]
    if size is None:
        raise ValueError(f"an alias stands inside what it names{_place(node)}: remove it")
    return size


def _parts(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        return [part for pair in node.value for part in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if node.tag == _WHOLE_NUMBER and len(node.value) > MAX_NUMBER_LENGTH:
        raise ValueError(f"a number has {len(node.value)} digits{_place(node)}: shorten it")
    return []


def _check_keys(node: yaml.MappingNode) -> None:
    """YAML would take the last of equal keys and say nothing."""
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise ValueError(f"the key {key.value!r} is there twice{_place(key)}: remove one")
            seen.add((key.tag, key.value))


def _place(node: yaml.Node) -> str:
    return f" (line {node.start_mark.line + 1})"
