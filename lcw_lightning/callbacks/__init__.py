"""Callbacks for any Lightning project: they constrain, initialize and watch a network while a Trainer runs it.

Thin shells over the floors below, which know nothing of them: they choose when, call and log, and hold no formula.
"""
