"""The only code that knows what a batch is."""
