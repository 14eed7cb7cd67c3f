"""Before any test is imported: nothing of the environment of whoever runs the tests is left that typer, rich and the
Hub's client would read as they are imported, in this process or those it starts; and these have one thread as it has,
since two threads on cores that are busy wait for each other most of the time."""

import os

for name in list(os.environ):
    if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy"):
        del os.environ[name]
for name in ("TRANSFORMERS_OFFLINE", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE", "COLUMNS"):
    os.environ.pop(name, None)
os.environ["OMP_NUM_THREADS"] = "1"
