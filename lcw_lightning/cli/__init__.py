"""The command ``lcw``: Lightning's command line with flags for constraints, and ``analyze`` and ``export`` besides.

It may import the whole package; no other module of the package may import the command line.
"""

import signal
import sys
from typing import TYPE_CHECKING

import lcw_lightning

if TYPE_CHECKING:
    from lightning.pytorch.cli import ArgsType

__all__ = ["main"]


def main(args: "ArgsType" = None) -> None:
    """Run ``lcw``, as :func:`lcw_lightning.cli.app.main` does; ``lcw --version`` does not import torch."""
    try:
        _run(args)
    except KeyboardInterrupt:  # outside of ends_in_one_message, such as while torch is imported
        sys.stderr.write("lcw: ended by Ctrl-C\n")
        sys.exit(128 + signal.SIGINT)


def _run(args: "ArgsType") -> None:
    given = sys.argv[1:] if args is None else args
    if given == ["--version"]:
        sys.stdout.write(f"lcw {lcw_lightning.__version__}\n")
        return
    command, *flags = given if isinstance(given, list) and given else [""]
    if command == "analyze" and any(str(flag).startswith("--network") for flag in flags):
        from lcw_lightning.cli import network_command  # noqa: PLC0415  # imports torch, but not Lightning

        network_command.main(flags)
        return
    from lcw_lightning.cli import app  # noqa: PLC0415  # imports torch and Lightning, which takes seconds

    app.main(args)
