"""The doctor: what one minibatch shows of every layer, and what it means in plain words.

Reads what ``observation`` has seen and which constraints weights are under. It changes no network and needs no Trainer.
"""

from lcw_lightning.analysis.analyze import analyze
from lcw_lightning.analysis.report import Report

__all__ = ["analyze", "Report"]
