"""What the tables of methods and their rivals have in common, from the records of methods alone."""

import statistics
from collections.abc import Collection

from tools.readme import made_on, unique

FAILED = 0.2  # a run failed if its test accuracy is lower; chance is 0.1


def accuracies(record: dict) -> list[float]:
    """Return the test accuracy of each seed that could run."""
    return [run["test_accuracy"] for run in record["runs"] if "cannot" not in run]


def spread(record: dict) -> str:
    """Return the mean test accuracy of the seeds, the lowest and the highest."""
    if not (found := accuracies(record)):
        return "cannot"
    return f"{statistics.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})"


def failures(record: dict) -> str:
    """Return how many seeds could not run, diverged, or stayed near chance."""
    runs = record["runs"]
    failed = sum("cannot" in run or run["diverged"] or run["test_accuracy"] < FAILED for run in runs)
    return f"{failed} of {len(runs)}" if runs else "-"


def held_out(attempt: dict) -> str:
    """Return the held-out accuracy of a run that was to choose settings."""
    if "cannot" in attempt:
        return "cannot"
    return "diverged" if attempt["diverged"] else f"{attempt['held_out_accuracy'][-1]:.3f}"


def at(record: dict, settings: dict[str, float]) -> dict:
    """Return the run that tried these settings."""
    return next(attempt for attempt in record["tried"] if settings.items() <= attempt.items())


def at_limit(record: dict) -> bool:
    """Return whether a chosen setting is the lowest or the highest that was tried."""
    tried = {name: [attempt[name] for attempt in record["tried"]] for name in record["chosen"]}
    return any(value in (min(tried[name]), max(tried[name])) for name, value in record["chosen"].items())


def below(records: Collection[dict]) -> str:
    """Return the line below a table: how many chose a limit of what was tried, what cannot be done, what made it."""
    able = [record for record in records if record["runs"]]
    attempts = [attempt for record in records for attempt in (*record["tried"], *record["runs"])]
    reasons = unique(attempt["cannot"].removesuffix(".") for attempt in attempts if "cannot" in attempt)
    limits = f"{sum(map(at_limit, able))} of {len(able)} choices are the lowest or the highest value that was tried."
    return " ".join([limits, *(f"Cannot: {reason}." for reason in reasons), f"Made on {made_on(list(records))}"])
