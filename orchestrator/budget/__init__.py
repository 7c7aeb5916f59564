"""What a run may take at most, and when it must be told to stop."""
