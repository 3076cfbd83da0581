"""Latency, memory and size of artifacts, measured in fresh processes of the target runtime."""
