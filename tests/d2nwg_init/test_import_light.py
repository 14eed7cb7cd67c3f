import subprocess
import sys

import pytest

import d2nwg_init

HEAVY = {"diffusers", "matplotlib", "ray", "datasets", "sklearn"}

THREADS = """
from concurrent.futures import ThreadPoolExecutor
import d2nwg_init
import d2nwg_init.report_page  # a call that shows no page must not pay for plots
names = ["initialize", "create_model", "list_generators", "Generator", "weights"]
assert len(list(ThreadPoolExecutor(5).map(lambda name: getattr(d2nwg_init, name), names))) == 5
"""


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import d2nwg_init.cli", HEAVY | {"torch", "timm"}),
        (THREADS, HEAVY),
    ],
    ids=["the command line", "the hook, in threads"],
)
def test_import_leaves_heavy_packages_alone(code, heavy):
    code += f"\nimport sys; print(sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_is_there_when_it_is_asked_for():
    names = {name: getattr(d2nwg_init, name) for name in d2nwg_init.__all__}
    assert {n: found.__name__ for n, found in names.items()} == {n: n for n in names}
    assert names.keys() <= set(dir(d2nwg_init))
    with pytest.raises(AttributeError, match="no attribute 'initialise'"):
        d2nwg_init.initialise  # noqa: B018
