"""Override a method on one object for a while."""

from collections.abc import Callable
from typing import Any

from typing_extensions import override

__all__ = ["override_method", "restore_method"]


class _Override:
    """What stands in for the method."""

    def __init__(self, instance: object, name: str, function: Callable[..., Any]) -> None:
        self.method = getattr(instance, name)
        self.was_on_instance = name in vars(instance)
        self.function = function
        # Lightning compares code objects to see whether a module has a hook of its own.
        self.__code__ = type(self).__call__.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.method, *args, **kwargs)

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the object, or a pickled one, gets the method itself, bound to the copy.
        return _itself, (self.method,)


def _itself(method: Callable[..., Any]) -> Callable[..., Any]:
    return method


def override_method(instance: object, name: str, function: Callable[..., Any]) -> None:
    """Let ``instance.name(...)`` be ``function(method, ...)``, where ``method`` is what it was.

    Deep copies and pickles of the instance have the method, not the override.

    Example:
        >>> class Greeter:
        ...     def greet(self):
        ...         return "hello"
        >>> greeter = Greeter()
        >>> override_method(greeter, "greet", lambda greet: greet().upper())
        >>> greeter.greet()
        'HELLO'
        >>> restore_method(greeter, "greet")
        >>> greeter.greet()
        'hello'
    """
    vars(instance)[name] = _Override(instance, name, function)


def restore_method(instance: object, name: str) -> None:
    """Take all overrides of ``instance.name`` away. Without one nothing happens."""
    while isinstance(override := vars(instance).get(name), _Override):
        if override.was_on_instance:
            vars(instance)[name] = override.method
        else:
            del vars(instance)[name]
