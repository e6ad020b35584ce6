"""Observation: the inputs and outputs of layers, their gradients, and statistics of them.

It may import ``weights`` and ``models``. It changes no number in a network, and knows no constraints, no verdicts.
"""
