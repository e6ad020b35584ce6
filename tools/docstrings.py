"""An extension of griffe: docstrings as mkdocstrings understands them."""

import re

import griffe


class Docstrings(griffe.Extension):
    """Show doctests as examples, and names in the roles of Sphinx as code."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of an object that was read."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r":\w+:`(?:~(?:\w+\.)*)?([^`<]+?)(?: <[^`]+>)?`", r"`\1`", text)
