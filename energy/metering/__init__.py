"""The meter: sensors on a schedule, windows, and what shows them while they run."""
