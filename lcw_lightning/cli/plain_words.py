"""Turn jsonargparse's account of a value that fits no type, of a dozen lines, into one sentence."""

import re

__all__ = ["in_one_sentence"]

_PLACE = re.compile(r"^(Parser key \"[^\"]+\"[^:]*|Problem with given class_path '[^']+'):\s*")
_FRAME = re.compile(
    r"Does not validate against |Subtypes: |Errors:$|Given value|"
    r"Expected a <class 'NoneType'>|Expected a path but "
)
_SEQUENCES = re.compile(r"\b(Sequence|list)\b")


def in_one_sentence(message: str) -> str:
    """Return the flag, what it needs and what was given; other messages with their lines joined.

    Example:
        >>> print(in_one_sentence(\"\"\"Parser key "model":
        ...   Errors:
        ...     - Problem with given class_path 'lcw_lightning.MLP':
        ...         Parser key "depth":
        ...           Expected a <class 'int'>. Got value: deep
        ...     - Expected a <class 'NoneType'>\"\"\"))
        --model.depth: expected an int; got 'deep'
    """
    lines = [re.sub(r"^[\s-]+", "", line) for line in message.splitlines()]
    keys = [key for line in lines for key in re.findall(r'Parser key "([^"]+)"', line)]
    if missing := re.fullmatch(r"the following arguments are required: (.*)", message):
        flags = ", ".join(f"--{name.partition('.')[2] or name}" for name in missing[1].split(", "))
        return f"{flags} is missing: give it by a flag, or by a config, --config=FILE"
    if not keys and not any(line.startswith("Does not validate against ") for line in lines):
        return " ".join(" ".join(lines).split())
    lines = [_PLACE.sub("", line) for line in lines]
    reasons = [line for line in lines if line and not _FRAME.match(line)]
    given = next((value for line in lines for value in re.findall(r"(?:Got|Given) value: (.*)", line)), "")
    given = re.sub(r"^NestedArg\(key='[^']*', val=(.*)\)$", r"\1", given)
    flag = f"--{'.'.join(keys)}: " if keys else ""
    given = given.strip("'")
    shown = f"; got {given!r}" if given and not given.startswith("Namespace(") else ""
    return f"{flag}{'; '.join(dict.fromkeys(map(_reason, reasons))) or 'not accepted'}{shown}"


def _reason(line: str) -> str:
    line = re.sub(r"\.* Got value: .*$", "", line)
    line = re.sub(
        r"^Type .* expects a function or a callable class: ", "expected a class or function by its path: ", line
    )
    if not (expected := re.match(r"Expected an? (.*?)$", line)):
        return line.rstrip(".")
    wanted = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", expected[1])
    wanted = re.sub(r"typing\.Literal\[(.*)\]$", r"one of \1", wanted)
    if _SEQUENCES.match(wanted):
        return "expected a list, such as [a, b]"
    article = "" if wanted.startswith("one of") else "an " if wanted[0] in "aeiou" else "a "
    return f"expected {article}{wanted}"
