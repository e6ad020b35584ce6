"""Refuse YAML that is broken, or in which a key stands twice, of which PyYAML would take the last in silence."""

from collections.abc import Iterator
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

__all__ = ["check_keys", "refuse_repeated_keys"]


def refuse_repeated_keys() -> None:
    """Let jsonargparse check the keys of all YAML that it reads from now on."""
    load = get_loader("yaml")
    if getattr(load, "checks_keys", False):
        return

    def checked(text: str) -> Any:
        try:
            check_keys(text)
        except yaml.MarkedYAMLError as error:
            raise yaml.YAMLError(_in_one_sentence(error)) from error
        return load(text)

    checked.checks_keys = True  # type: ignore[attr-defined]
    set_loader("yaml", checked, exceptions=(yaml.YAMLError,))


def _in_one_sentence(error: yaml.MarkedYAMLError) -> str:
    """Return where YAML is broken, and why; it breaks most often where lines are not indented alike."""
    mark = error.problem_mark or error.context_mark
    place = f"in line {mark.line + 1}, column {mark.column + 1}, " if mark else ""
    reason = ", ".join(filter(None, (error.context, error.problem)))
    return f"{place}{reason}; the keys of one group begin in one column, behind spaces, not tabs"


def check_keys(text: str) -> None:
    r"""Raise if a mapping in YAML text has a key twice.

    Raises:
        yaml.YAMLError: It has, or the text is no YAML.

    Example:
        >>> check_keys("a: 1\nb: {c: 2, c: 3}")
        Traceback (most recent call last):
        yaml.error.YAMLError: the key 'c' stands twice, in lines 2 and 2; keep one
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for mapping in _mappings(root, set()):
        lines: dict[str, int] = {}
        for key, _ in mapping.value:
            line = key.start_mark.line + 1
            if key.value in lines and isinstance(key, yaml.ScalarNode):
                first = lines[key.value]
                raise yaml.YAMLError(f"the key {key.value!r} stands twice, in lines {first} and {line}; keep one")
            lines[str(key.value)] = line


def _mappings(node: Any, seen: set[int]) -> Iterator[yaml.MappingNode]:
    if id(node) in seen:  # an alias may refer to a node above it
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value, seen)
