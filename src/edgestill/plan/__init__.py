"""What a job is going to cost, before any of it is done. Parts take plain values, and know no Recipe."""
