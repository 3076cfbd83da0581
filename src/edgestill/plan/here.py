"""This machine as a device: its peak by a short matrix product, its memory's bandwidth by a copy."""

import os
from collections.abc import Callable
from time import process_time

import torch

from edgestill.plan.hardware import HERE, Hardware

SIDE, NUMBERS = 1024, 2**24
TURNS = 5
SHARES, RESERVE = (0.9, 0.76), 1.2
"""What teachers and students reach of the matrix product's rate, and what the process takes over its tensors' bytes, on
one core, in float32, of benchmarks/results/2026-11-30-paper.md: elsewhere an assumption."""


def measured(precision: str = "float32") -> Hardware:
    """The threads that torch has here as one device, in a second or two; times are those of the processor, which other
    processes do not lengthen, divided by the threads."""
    kind = torch.float32 if precision == "float32" else torch.bfloat16
    left, right = torch.ones(SIDE, SIDE, dtype=kind), torch.ones(SIDE, SIDE, dtype=kind)
    rate = 2 * SIDE**3 / _seconds(lambda: torch.nn.functional.linear(left, right))
    source = torch.ones(NUMBERS)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(HERE, rate, rate, memory, bandwidth, *SHARES, RESERVE, ("measured", "assumed", "assumed"))


def _seconds(call: Callable[[], object]) -> float:
    """Of the fastest of some calls."""
    found = []
    for _ in range(TURNS):
        started = process_time()
        call()
        found.append((process_time() - started) / torch.get_num_threads())
    return min(found)
