"""Analysis: the statistics of every layer on one minibatch, and a verdict on them in plain words.

Reads the numbers of ``observation`` and the constraints of weights. It changes no network and needs no Trainer.
"""

from lcw_lightning.analysis.analyze import analyze
from lcw_lightning.analysis.report import Report

__all__ = ["analyze", "Report"]
