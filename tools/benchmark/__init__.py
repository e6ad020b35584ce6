"""What constraints, ShiftMonitor and data loading cost, beside their rivals: ``python -m tools.benchmark``.

Each workload is a module with a function ``measure``. Results are JSON files; ``report`` makes tables of them.
"""
