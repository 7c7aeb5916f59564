"""The experiment: one YAML file, checked as a whole before anything starts."""
