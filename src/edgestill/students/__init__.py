"""Students that are built from their teacher: other plain models, whose bytes and latency count."""
