import subprocess
import sys

import pytest

HEAVY = {"diffusers", "matplotlib", "ray", "datasets", "sklearn"}


@pytest.mark.parametrize("module", ["d2nwg_init", "d2nwg_init.cli"])
def test_import_leaves_heavy_packages_alone(module):
    code = f"import {module}, sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
