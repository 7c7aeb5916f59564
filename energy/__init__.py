"""Energy of a run: sensors to joules, joules to carbon. Needs neither torch nor ray."""
