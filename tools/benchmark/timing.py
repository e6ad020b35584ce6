"""Seconds and memory of several methods, interleaved in one process, so that noise affects all alike."""

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate, count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

FEWEST = 5  # rounds, however long they take
SHORTEST = 0.1  # seconds of a sample; for a faster call, a sample is the mean of several


@dataclass(frozen=True)
class Settings:
    """How a workload is measured: in ``rounds``; if ``None``, for ``seconds`` a case, but in at least FEWEST rounds."""

    device: str = "cpu"
    rounds: int | None = None
    seconds: float = 60.0
    batch: int = 128
    compile: bool = False
    precision: str = "32"
    cases: Sequence[str] = ("*",)  # glob patterns

    def wants(self, case: str) -> bool:
        """Return whether a case is to be measured."""
        return any(fnmatchcase(case, pattern) for pattern in self.cases)


@dataclass(frozen=True)
class Task:
    """What a method does: ``run`` is timed; ``prepare`` comes before each run and is not timed."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


def interleaved(tasks: dict[str, Task], settings: Settings) -> list[dict]:
    """Return for each method the seconds of its runs, and the memory of one run."""
    memory, runs = {}, {}
    for name, task in tasks.items():
        seconds_a_run(task, 1, settings.device)  # it compiles, makes momentum buffers and reserves memory
        memory[name] = memory_of_a_run(task, settings.device)
        runs[name] = math.ceil(SHORTEST / seconds_a_run(task, 1, settings.device))
    order, shuffle = list(tasks), random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    begin = time.perf_counter()
    for done in count():
        in_time = time.perf_counter() - begin < settings.seconds
        if done >= (settings.rounds or FEWEST) and (settings.rounds or not in_time):
            break
        shuffle(order)  # no method always follows the same one
        for name in order:
            if runs[name] > 1:
                seconds_a_run(tasks[name], 1, settings.device)  # it brings this method's numbers into the caches
            seconds[name].append(seconds_a_run(tasks[name], runs[name], settings.device))
    return [{"method": name, "seconds": times, **memory[name]} for name, times in seconds.items()]


def seconds_a_run(task: Task, runs: int, device: str) -> float:
    """Return the mean over successive runs."""
    total = 0.0
    for _ in range(runs):
        task.prepare()
        synchronize(device)
        begin = time.perf_counter()
        task.run()
        synchronize(device)
        total += time.perf_counter() - begin
    return total / runs


def memory_of_a_run(task: Task, device: str) -> dict:
    """Return the most bytes that a run holds beyond those held before it, and on CPUs its largest allocation.

    The bytes of torch's allocators are counted, also inside operators; scratch space of oneDNN and BLAS is not.
    """
    task.prepare()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        task.run()
        return {"peak_bytes": torch.cuda.max_memory_allocated() - before, "largest_bytes": None}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        task.run()
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return {"peak_bytes": max(accumulate(changes, initial=0)), "largest_bytes": max(changes, default=0)}


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()
