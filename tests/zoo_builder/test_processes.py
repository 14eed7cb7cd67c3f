"""Worker processes."""

import signal
import subprocess
import sys

PARENT = """
import os, sys, time
from zoo_builder.executors.processes import process_executor

if __name__ == "__main__":
    executor = process_executor(1)
    print(executor.submit(os.getpid).result() != os.getpid(), flush=True)
    executor.submit(time.sleep, 600)
    time.sleep(600)
"""


def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path):
    """Whatever it is doing: its end of the pipe is closed."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "True\n"
        parent.kill()
        assert parent.communicate(timeout=60)[0] == ""


def test_ctrl_c_ends_a_server_that_imports_without_a_traceback():
    code = "import zoo_builder.executors.ended_by_ctrl_c, signal; signal.raise_signal(signal.SIGINT)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")
