import sys

import numpy as np
import pytest

from d2nwg_init.benchmarks.peak_memory import peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_peak_is_seen_after_it_was_given_back():
    with peak_memory() as before:
        pass
    with peak_memory() as peak:
        np.ones(2**26, np.uint8).sum()  # 64 MiB
    with peak_memory() as after:
        pass
    assert peak.bytes > before.bytes + 2**25
    assert after.bytes < peak.bytes - 2**25
