"""Observation: what layers see and send, forward and backward, and the statistics of it.

Stands on ``weights``. It changes no number of a network, and knows nothing of constraints, callbacks or verdicts.
"""
