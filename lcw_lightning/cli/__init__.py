"""The command ``lcw``."""

from lcw_lightning.cli.app import main

__all__ = ["main"]
