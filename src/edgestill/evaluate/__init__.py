"""Predict function + data -> metrics. A model and an artifact are both just predict functions."""
