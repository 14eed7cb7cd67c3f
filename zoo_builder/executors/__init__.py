"""Where tasks run: processes of one machine, or a Ray cluster. Both are a concurrent.futures.Executor."""
