"""The parser of ``lcw``, whose errors are one message."""

import traceback
from typing import Any, NoReturn

from jsonargparse.typing import PositiveInt
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lcw_lightning.constraints.constrain import Kind

__all__ = ["LCWParser"]

CLASS_PATH = (
    "Name a class as module.Class, with its module in the working directory or installed, and a config by its path."
)


class LCWParser(LightningArgumentParser):
    """A parser whose errors are one message: the usage with its 200 options would bury it."""

    @override
    def print_usage(self, *args: object, **kwargs: object) -> None:
        pass

    @override
    def add_method_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        # Lightning would make a subcommand's required arguments positional, which its own do not have.
        added: list[str] = super().add_method_arguments(*args, as_positional=False, **kwargs)
        if "analyze" in args:
            kinds = "Kinds of constraint to put side by side, each on the same weights and batch."
            self.add_argument("--compare", type=Kind, nargs="+", default=[], help=kinds)
            draws = "Draws of the weights, of seeds seed, seed + 1 and so on; several add a pre-flight check."
            self.add_argument("--draws", type=PositiveInt, default=1, help=draws)
        return added

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        problem = import_problem(ex)
        super().error(f"{message.partition(':')[0]}: {problem}" if problem else message, ex)


def import_problem(error: BaseException | None) -> str:
    """Return why a class cannot be had, if an error of jsonargparse has that cause; else nothing.

    Its own message holds this as one of many lines: what each type that the value might have been says to it.
    """
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        frames_of_files = [frame for frame in frames if not frame.filename.startswith("<frozen importlib")]
        if any(frame.name == "import_object" for frame in frames_of_files):  # jsonargparse's own
            last = frames_of_files[-1]
            if last.name != "import_object":
                place = f"{last.filename}, line {last.lineno}"
                return f"importing the class raised {type(error).__name__}: {error} ({place})."
            if isinstance(error, SyntaxError):  # says the place itself
                return f"importing the class raised SyntaxError: {error}."
            return f"{error}. {CLASS_PATH}"
        if str(error).startswith("Import path "):  # the class is there, but another kind of class
            return f"{error}."
        error = error.__cause__
    return ""
