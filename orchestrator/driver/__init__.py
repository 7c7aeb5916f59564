"""The driver of a run: attempts, failures, stops, and the record at every end."""
