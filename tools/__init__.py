"""Programs beside the package: they measure it and repeat the papers' experiments; no user installs them.

Start them in the repository's root: ``python -m tools.benchmark`` and ``python -m tools.reproduce``.
"""
