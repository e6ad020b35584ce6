"""Turn what jsonargparse says of a mistake, in up to a dozen lines, into one sentence."""

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches

from lcw_lightning.cli.help import COMMAND_HELP
from lcw_lightning.cli.near_names import near_class, near_flag, options_of
from lcw_lightning.weights.selection import listed

__all__ = ["flag_in", "in_one_sentence", "keys_in"]

_KEY = re.compile(r'Parser key "([^"]+)"')
_PLACE = re.compile(r"^(Parser key \"[^\"]+\"[^:]*|Problem with given class_path '[^']+'):\s*")
_FUNCTION = re.compile(r"^Type .* expects a function or a callable class: ")
_NO_REASON = re.compile(f"{_FUNCTION.pattern}(?=Parser key |Option |the following )")
_NO_OPTION = (
    r"given class_path '(?P<path>[^']+)':\s+Option '(?P<option>\w+)' is not accepted",
    r"Option '(?P<option>\w+)' is not accepted\. Got value: Namespace\(class_path='(?P<path>[^']+)'",
)
_FRAME = re.compile(
    r"Does not validate against |Subtypes: |Errors:$|Given value|"
    r"Expected a <class 'NoneType'>|Expected a path but "
)
_SEQUENCES = re.compile(r"\b(Sequence|list)\b")
_NO_CLASS = re.compile(r"(?:Expected a dot import path string|Unexpected import path format): (.*?)\.?$")
_NAMESPACES = ("Namespace(", "{")


def in_one_sentence(message: str, flags: Iterable[str] = ()) -> str:
    """Return the flag, what it needs and what was given; other messages with their lines joined.

    Args:
        message: Of jsonargparse.
        flags: Those that the parser knows.

    Example:
        >>> print(in_one_sentence(\"\"\"Parser key "model":
        ...   Errors:
        ...     - Problem with given class_path 'lcw_lightning.MLP':
        ...         Parser key "depth":
        ...           Expected a <class 'int'>. Got value: deep
        ...     - Expected a <class 'NoneType'>\"\"\"))
        --model.depth: expected an int; got 'deep'
        >>> in_one_sentence("unrecognized arguments: --constraint.kin=lcw", ["--config", "--constraint.kind"])
        'unrecognized arguments: --constraint.kin=lcw; near it is --constraint.kind'
    """
    lines = [re.sub(r"^[\s-]+", "", line) for line in message.splitlines()]
    if said := _of_a_whole_command(message, list(flags)):
        return said
    if not keys_in(message) and not any(line.startswith("Does not validate against ") for line in lines):
        return " ".join(" ".join(lines).split())
    found = re.search(r"(?:Got|Given) value: (.*?)(?:\. Got value: .*)?$", message, re.MULTILINE)
    given = re.sub(r"^NestedArg\(key='[^']*', val=(.*)\)$", r"\1", found[1] if found else "").strip("'")
    lines = [_PLACE.sub("", _NO_REASON.sub("", line)) for line in lines]
    reasons = _most_telling([line for line in lines if line and not _FRAME.match(line)])
    reason = _no_option(message) or _joined([*dict.fromkeys(map(_reason, reasons))]) or "not accepted"
    is_said = not given or given.startswith(_NAMESPACES) or f"class {given}" in reason
    return f"{flag_in(message)}{reason}{'' if is_said else f'; got {given!r}'}"


def keys_in(message: str) -> str:
    """Return the key that a message is on, such as ``model.depth``; an empty string if it is on none."""
    keys = _KEY.findall(message)
    return ".".join(key for place, key in enumerate(keys) if place == 0 or key != keys[place - 1])


def flag_in(message: str) -> str:
    """Return the flag that a message is on, with a colon behind it.

    Example:
        >>> flag_in('Parser key "model": Problem with given class_path: Parser key "depth": Expected')
        '--model.depth: '
    """
    return f"--{keys}: " if (keys := keys_in(message)) else ""


def _of_a_whole_command(message: str, flags: Sequence[str]) -> str:
    """Return what is said of a command, rather than of a value; an empty string for other messages."""
    for pattern, say in _COMMANDS.items():
        if found := re.match(pattern, message):
            return say(flags, *found.groups())
    return ""


def _missing(_: Sequence[str], names: str) -> str:
    flags = ", ".join(f"--{name.partition('.')[2] or name}" for name in names.split(", "))
    are, them = ("are", "them") if "," in names else ("is", "it")
    return f"{flags} {are} missing: give {them} by a flag, or by a config, --config=FILE"


def _unknown(flags: Sequence[str], arguments: str) -> str:
    given = [word.partition("=")[0] for word in arguments.split() if word.startswith("--")]
    near = {flag: found for flag in given if (found := near_flag(flag, flags))}
    if near:
        advice = ", ".join(f"near {'it' if len(given) == 1 else flag} is {found}" for flag, found in near.items())
    elif given:
        advice = "settings of the model begin with --model., of the data with --data., of the Trainer with --trainer."
    else:
        advice = "settings are given by flags, and a config by --config=FILE"
    return f"unrecognized arguments: {arguments}; {advice}"


def _no_setting(flags: Sequence[str], command: str, key: str) -> str:
    near = near_flag(f"--{key}", flags).lstrip("-")
    return f"the config has {key!r}, which is no setting of lcw {command}{near and f'; near it is {near!r}'}"


def _no_command(_: Sequence[str], given: str) -> str:
    near = "".join(get_close_matches(given, COMMAND_HELP, n=1))
    return f"there is no command {given!r}{near and f', near it is {near!r}'}; there are {', '.join(COMMAND_HELP)}"


_COMMANDS: dict[str, Callable[..., str]] = {
    r"the following arguments are required: (.*)$": _missing,
    r"unrecognized arguments: (.*)": _unknown,
    r"Subcommand '(\w+)' does not accept option '([^']*)'": _no_setting,
    r"argument (?:\S*/)?(\S+): expected (?:one|at least one) argument": lambda _, flag: f"{flag} needs a value",
    r"argument subcommand: invalid choice: '([^']*)'": _no_command,
    'expected "subcommand" to be one of ': lambda _: f"name a command: lcw {', lcw '.join(COMMAND_HELP)}",
}
"""What jsonargparse says of a command, and what is said instead."""


def _joined(reasons: Sequence[str]) -> str:
    types = [reason.removeprefix("expected ") for reason in reasons if not re.search("; got |:", reason)]
    is_union = len(types) == len(reasons) > 1 and all(reason.startswith("expected ") for reason in reasons)
    return f"expected {' or '.join(types)}" if is_union else "; ".join(reasons)


def _no_option(message: str) -> str:
    """Return that a class has no such argument, and which it has; an empty string for other messages."""
    if not (found := next(filter(None, (re.search(pattern, message) for pattern in _NO_OPTION)), None)):
        return ""
    path, option = found["path"], found["option"]
    options = options_of(path)
    near = "".join(get_close_matches(option, options, n=1))
    advice = f"; near it is {near!r}" if near else f"; it has {listed(options)}" if options else ""
    return f"{path} has no option {option!r}{advice}"


def _most_telling(reasons: Sequence[str]) -> Sequence[str]:
    """Leave out that a word is no class where a number would do, and that it is no list where a class would do."""
    no_class = [reason for reason in reasons if _NO_CLASS.match(reason)]
    others = [reason for reason in reasons if reason not in no_class]
    return no_class if no_class and all(_SEQUENCES.search(reason) for reason in others) else others


_REASONS = {
    r"Unable to load config ['\"](.*)['\"]$": (
        "{0!r} is no config; the settings of a group have flags of their own, which --help lists"
    ),
    r"Not of type \w+: (.*) does not conform to restriction v(.*?)\.?$": "expected a number {1}; got {0!r}",
    r".*Expected '(.*)' to be a function that returns (?:<class '(?:[\w.]*\.)?)?(\w+).*$": (
        "{0} is no class, nor a function that returns a {1}"
    ),
    r"(Option 'init_args\..*?)\.?$": "{0}; in a config it is indented too little, or too far",
}
"""Why jsonargparse does not take a value, and what is said instead."""


def _reason(line: str) -> str:
    line = _FUNCTION.sub("expected a class or function by its path: ", re.sub(r"\.* Got value: .*$", "", line))
    if no_class := _NO_CLASS.match(line):
        near = near_class(no_class[1])
        return f"there is no class {no_class[1]}{near and f', near it is {near}'}"
    for pattern, words in _REASONS.items():
        if found := re.match(pattern, line):
            return words.format(*found.groups())
    if not (expected := re.match(r"Expected an? (.*?)$", line)):
        return line.rstrip(".")
    wanted = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", expected[1])
    wanted = re.sub(r"typing\.Literal\[(.*)\]$", r"one of \1", wanted)
    if _SEQUENCES.match(wanted):
        return "expected a list, such as [a, b]"
    article = "" if wanted.startswith("one of") else "an " if wanted[0] in "aeiou" else "a "
    return f"expected {article}{wanted}"
