"""One backend a file, and `verify`, which compares an exported file with the model it came from."""
