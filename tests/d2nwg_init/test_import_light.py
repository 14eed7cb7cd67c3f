import subprocess
import sys

HEAVY = {"diffusers", "matplotlib", "ray", "datasets", "sklearn"}


def test_import_leaves_heavy_packages_alone():
    code = f"import d2nwg_init, d2nwg_init.cli, sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
