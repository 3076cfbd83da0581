"""Data: splits of images from parquet, folders, the Hub or arrays; decoded once; seen through deterministic views."""
