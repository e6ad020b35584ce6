"""Override methods of single objects for a while."""

from collections.abc import Callable
from typing import Any

from typing_extensions import Self, override

__all__ = ["Overrides"]


class Overrides:
    """Methods that stand in for those of single objects, until :meth:`restore` or the end of a ``with`` block.

    Deep copies and pickles of such an object have its own method, and those of the overrides are empty.

    Example:
        >>> class Greeter:
        ...     def greet(self):
        ...         return "hello"
        >>> greeter = Greeter()
        >>> with Overrides() as overrides:
        ...     overrides.add(greeter, "greet", lambda greet: greet().upper())
        ...     greeter.greet()
        'HELLO'
        >>> greeter.greet()
        'hello'
    """

    def __init__(self) -> None:
        self._added: list[_Override] = []

    def add(self, instance: object, name: str, function: Callable[..., Any]) -> None:
        """Let ``instance.name(...)`` be ``function(method, ...)``, where ``method`` is what it was."""
        self._added.append(_Override(instance, name, function))

    def restore(self) -> None:
        """Let every object have its own method again, below the overrides that others have added since."""
        while self._added:
            self._added.pop().remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    @override
    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()


class _Override:
    """What stands in for one method."""

    def __init__(self, instance: object, name: str, function: Callable[..., Any]) -> None:
        self.instance = instance
        self.name = name
        self.method = getattr(instance, name)
        self.was_on_instance = name in vars(instance)
        self.function = function
        vars(instance)[name] = self
        # Lightning compares code objects to see whether a module has a hook of its own.
        self.__code__ = type(self).__call__.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.method, *args, **kwargs)

    def remove(self) -> None:
        above: Any = vars(self.instance).get(self.name)
        if above is self:
            if self.was_on_instance:
                vars(self.instance)[self.name] = self.method
            else:
                del vars(self.instance)[self.name]
            return
        while isinstance(above, _Override):
            if above.method is self:
                above.method, above.was_on_instance = self.method, self.was_on_instance
            above = above.method

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the object, or a pickled one, gets the method itself, bound to the copy.
        return _itself, (self.method,)


def _itself(method: Callable[..., Any]) -> Callable[..., Any]:
    return method
