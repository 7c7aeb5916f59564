"""From a YAML experiment to a metered run on Ray: the spec, the driver, the workers and the command line."""
