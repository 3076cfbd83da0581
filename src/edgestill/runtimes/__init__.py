"""One file a runtime: `load(path, threads) -> predict`. Each file also runs alone, on a device without edgestill."""
