"""What each stage of a call takes."""

import json
import subprocess
import sys

import pytest

from d2nwg_init.resident_memory import most_resident_bytes
from d2nwg_init.stages import Stages

MIB = 1 << 20
HUNGRY = f"""
import json, torch
from d2nwg_init.stages import Stages
stages = Stages()
with stages("much"):
    torch.ones(200 * {MIB}, dtype=torch.uint8)
with stages("less"):
    torch.ones(50 * {MIB}, dtype=torch.uint8)
print(json.dumps(stages.peak_bytes))
"""


def test_a_stage_that_fails_is_not_told():
    stages = Stages()
    with pytest.raises(KeyError), stages("first"):
        raise KeyError
    with stages("second"):
        pass
    assert stages.seconds.keys() == {"second"}


def test_memory_is_by_how_much_a_stage_raised_the_peak_of_the_process():
    if most_resident_bytes() is None:
        pytest.skip("this system does not tell how much memory a process held")
    done = subprocess.run([sys.executable, "-c", HUNGRY], capture_output=True, text=True, check=True)
    peak = json.loads(done.stdout)
    assert 150 * MIB < peak["much"] < 300 * MIB  # the process had some to spare
    assert peak["less"] < 10 * MIB
