import subprocess
import sys

import numpy as np
import pytest

from d2nwg_init.benchmarks.peak_memory import gained_alone, peak_memory


def told():
    """Whether this system, as Linux does but for some containers, tells the peak of a process."""
    with peak_memory() as peak:
        pass
    return peak.gained is not None


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


@pytest.mark.skipif(not told(), reason="this system does not tell it")
def test_the_peak_is_seen_after_it_was_given_back():
    printed = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    before, peak, after = map(int, printed.split())
    assert peak > before + 2**25
    assert after < peak - 2**25


def large():
    return np.ones(2**26, np.uint8)  # 64 MiB


def nothing_prepared():
    return large


def all_prepared():
    kept = large()
    return kept.sum


def small_ones():
    return [np.ones(2**16, np.uint8) for _ in range(2**10)]  # 64 MiB, of which each is too small to be given back


def freed_while_preparing():
    blocks = small_ones()
    last = blocks.pop()
    blocks.clear()
    return lambda: (last, small_ones())


@pytest.mark.skipif(not told(), reason="this system does not tell it")
def test_a_process_alone_gains_what_it_takes_and_not_what_was_prepared():
    assert gained_alone(nothing_prepared) > 2**25
    assert gained_alone(all_prepared) < 2**25
    assert gained_alone(freed_while_preparing) > 2**25
