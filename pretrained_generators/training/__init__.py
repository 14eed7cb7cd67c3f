"""Train a generator from a zoo. Inside this package the only place that reads one."""
