"""The papers' experiments, and a small one on the digits: ``python -m tools.reproduce``.

Each run of ``lcw`` is one JSON file in results/; tables and pictures are made from those files alone.
"""
