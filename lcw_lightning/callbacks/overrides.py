"""Override methods of single objects for a while."""

from collections.abc import Callable
from typing import Any

from typing_extensions import Self, override

__all__ = ["Overrides"]


class Overrides:
    """Replace methods of single objects, until :meth:`restore` or the end of a ``with`` block.

    A deep copy or pickle of such an object has its original method. A copy or pickle of the overrides is empty.

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
        """Make ``instance.name(...)`` call ``function(method, ...)``, where ``method`` is the previous method."""
        self._added.append(_Override(instance, name, function))

    def restore(self) -> None:
        """Remove these overrides from every object; overrides that others have added since stay."""
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
    """The replacement of one method."""

    def __init__(self, instance: object, name: str, function: Callable[..., Any]) -> None:
        self.instance = instance
        self.name = name
        self.method = getattr(instance, name)
        self.was_on_instance = name in vars(instance)
        self.function = function
        vars(instance)[name] = self
        # Lightning compares code objects to see whether a module overrides a hook.
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
        # A copy or pickle of the object gets the original method, bound to the copy.
        return _itself, (self.method,)


def _itself(method: Callable[..., Any]) -> Callable[..., Any]:
    return method
