"""python -m d2nwg_init is d2nwg-init; what torchrun -m needs."""

from d2nwg_init.cli import app

app()
