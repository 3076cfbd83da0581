"""One file a runtime: `load(path, threads) -> predict`, and two that measure with any of them.

Each file also runs alone, on a device without edgestill: `NAME_runtime.py` beside numpy and its runtime; `runner.py`
and `measure.py` beside numpy.
"""
