"""Observation: the inputs and outputs of layers, their gradients, and statistics of them.

It may import ``weights``. It changes no number in a network, and knows nothing of constraints, callbacks or verdicts.
"""
