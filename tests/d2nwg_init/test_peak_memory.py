import subprocess
import sys

import pytest

# In a process of its own: in one with a large heap, what is asked for may be there already.
SCRIPT = """
import numpy as np
from d2nwg_init.benchmarks.peak_memory import peak_memory

with peak_memory() as before:
    pass
with peak_memory() as peak:
    np.ones(2**26, np.uint8).sum()  # 64 MiB
with peak_memory() as after:
    pass
print(before.bytes, peak.bytes, after.bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_peak_is_seen_after_it_was_given_back():
    printed = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    before, peak, after = map(int, printed.split())
    assert peak > before + 2**25
    assert after < peak - 2**25
