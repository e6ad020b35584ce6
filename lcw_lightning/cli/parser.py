"""The parser of ``lcw``, which reports an error in one message, without the usage."""

import re
import traceback
from typing import Any, Literal, NoReturn

from jsonargparse.typing import PositiveInt
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

from lcw_lightning.cli.help import COMMAND_HELP, FLAG_HELP, GROUP_TITLES, group_rank, without_markup
from lcw_lightning.cli.near_names import near_class
from lcw_lightning.cli.plain_words import flag_in, in_one_sentence, keys_in
from lcw_lightning.compat import help_groups, listed_subcommands, option, option_names, subcommand_parser
from lcw_lightning.constraints.kinds import Kind

__all__ = ["LCWParser", "describe_commands"]

CLASS_PATH = (
    "Name a class as module.Class, with its module in the working directory or installed, and a config by its path."
)
_NO_ATTRIBUTE = re.compile(r"module '([^']+)' has no attribute '([^']+)'")


class LCWParser(LightningArgumentParser):
    """A parser that reports an error in one message, because the usage with its 200 options would hide it."""

    @override
    def format_help(self, *args: Any, **kwargs: Any) -> str:
        groups = self.groups or {}
        names = {id(group): name for name, group in groups.items()}
        for name, group in groups.items():
            group.title = GROUP_TITLES.get(name, group.title)
        help_groups(self).sort(key=lambda group: group_rank(names.get(id(group))))
        if names:  # of a subcommand, whose usage would list 200 flags
            self.usage = f"{self.prog.replace(' [options]', '')} [--config FILE] [flags]"
        return without_markup(super().format_help(*args, **kwargs))

    @override
    def print_usage(self, *args: object, **kwargs: object) -> None:
        pass

    @override
    def add_method_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        # Lightning would make required arguments positional, unlike the arguments of its own subcommands.
        added: list[str] = super().add_method_arguments(*args, as_positional=False, **kwargs)
        if "predict" in args:
            output = (
                "File to write, .csv or .pt: sample, label, probabilities, and the true label where there is one. "
                "Without it, predictions go into the run's folder as the model returns them."
            )
            self.add_argument("--output", type=str | None, default=None, help=output)
        if "analyze" in args:
            kinds = (
                "Kinds of constraint to compare, each on the same weights and batch; as_built is the model alone, "
                "neither constrained nor initialized by a callback."
            )
            self.add_argument("--compare", type=Literal["as_built", Kind], nargs="+", default=[], help=kinds)
            draws = (
                "Number of weight draws, with seeds seed, seed + 1 and so on; more than one adds a pre-flight check."
            )
            self.add_argument("--draws", type=PositiveInt, default=1, help=draws)
        return added

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        problem = import_problem(ex)
        if problem and not self.exit_on_error:  # the parser of a part of the value, whose message the whole one holds
            message = f'Parser key "{keys_in(message)}": {problem}'
        elif problem:
            message = f"{flag_in(message)}{problem}"
        elif self.exit_on_error:
            message = in_one_sentence(message, option_names(getattr(ex, "subcommand_parser", self)))
        super().error(message, ex)


def describe_commands(cli: LightningCLI) -> None:
    """Give the subcommands and their flags the descriptions of :mod:`lcw_lightning.cli.help`."""
    for command, listed in listed_subcommands(cli).items():
        parser = subcommand_parser(cli, command)
        listed.help = parser.description = COMMAND_HELP[command]
        for flag, words in FLAG_HELP.items():
            option(parser, flag).help = words


def import_problem(error: BaseException | None) -> str:
    """Return why a class could not be imported, if this caused jsonargparse's error; else an empty string.

    In jsonargparse's own message the cause is one of many lines, one for each type that the value could have had.
    """
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        frames_of_files = [frame for frame in frames if not frame.filename.startswith("<frozen importlib")]
        if any(frame.name == "import_object" for frame in frames_of_files):  # jsonargparse's own
            last = frames_of_files[-1]
            if last.name != "import_object" and not _NO_ATTRIBUTE.fullmatch(str(error)):
                place = f"{last.filename}, line {last.lineno}"
                return f"importing the class raised {type(error).__name__}: {error} ({place})."
            if isinstance(error, SyntaxError):  # its message names the place
                return f"importing the class raised SyntaxError: {error}."
            return f"{_no_class(error)}. {CLASS_PATH}"
        if str(error).startswith("Import path "):  # the class exists, but is not of the wanted type
            return f"{error}."
        error = error.__cause__
    return ""


def _no_class(error: BaseException) -> str:
    """Return why there is no such class, and which name is near."""
    message = str(error)
    if attribute := _NO_ATTRIBUTE.fullmatch(message):
        near = near_class(f"{attribute[1]}.{attribute[2]}")
    elif path := re.fullmatch(r"Expected a dot import path string: (.*)", message):
        message, near = f"there is no class {path[1]}", near_class(path[1])
    elif path := re.fullmatch(r"Unexpected import path format: (.*)", message):
        message, near = f"{path[1]} is no path of a class", near_class(re.sub(r"\(.*", "", path[1]))
    else:
        near = ""
    return f"{message}{near and f', near it is {near}'}"
