"""Callbacks for any Lightning project: they constrain, initialize and watch a network while a Trainer runs it.

They are thin shells: they decide when to call the lower modules, and log the results. They contain no formula, and no
lower module imports them.
"""
