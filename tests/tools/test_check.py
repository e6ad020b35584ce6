"""tools/run_tests, which tools/check ends with, and .ci/run end whatever a test does, and name the test."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BAD_TESTS = """
import ctypes, os, time
import pytest

@pytest.mark.parametrize("number", range(4))
def test_good(number): pass

def test_crashes(): os.abort()

def test_hangs(): time.sleep(600)

@pytest.mark.slow
def test_hangs_in_c_code_that_lets_no_other_thread_run(): ctypes.PyDLL(None).sleep(600)
"""


@pytest.fixture
def run_tests(tmp_path):
    """Return a function of a limit and flags of pytest: how the bad tests end, each of which has a second."""
    (tmp_path / "test_bad.py").write_text(BAD_TESTS)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(limit, *flags):
        short = ["-c", ROOT / "pyproject.toml", "-o", "timeout=1", "-o", "faulthandler_timeout=0.5"]
        command = [ROOT / "tools" / "run_tests", limit, *short, "-p", "no:cacheprovider", *flags, tmp_path]
        return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)

    return run


def crashed(output):
    return set(re.findall(r"crashed while running '.*test_bad.py::(\w+)'", output))


def test_a_crash_and_a_hang_are_named_and_the_rest_goes_on(run_tests):
    done = run_tests("60s")
    assert done.returncode == 1
    assert crashed(done.stdout) == {"test_crashes", "test_hangs"}
    assert "4 passed" in done.stdout
    for name in ("test_crashes", "test_hangs"):  # the stacks of both
        assert f"in {name}\n" in done.stderr


@pytest.mark.slow
def test_what_hangs_all_the_same_is_ended(run_tests):
    done = run_tests("10s", "-m", "slow")
    assert done.returncode == 124
    assert "in test_hangs_in_c_code_that_lets_no_other_thread_run\n" in done.stderr


@pytest.mark.slow
def test_shared_out_by_file_a_crash_is_repeated_and_the_hang_never_named(run_tests):
    assert crashed(run_tests("20s", "--dist=loadfile").stdout) == {"test_crashes"}


@pytest.mark.slow
def test_a_slow_test_has_longer(request):
    (seconds,) = request.node.get_closest_marker("timeout").args
    assert seconds > 5 * float(request.config.getini("timeout"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "status"), [("sleep 600 & exit 3", 3), ("sleep 600", 124)], ids=["leaves-a-process", "hangs"]
)
def test_ci_ends_and_leaves_no_process_behind(check, status, tmp_path):
    for folder in (".ci", "tools"):
        (tmp_path / folder).mkdir()
    (tmp_path / "README.md").write_text("tools/check\n")
    (tmp_path / "tools" / "check").write_text(check)
    (tmp_path / "tools" / "check").chmod(0o755)
    (tmp_path / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text().replace("19m", "20s"))
    # communicate waits for the last process that could write.
    with subprocess.Popen(["bash", tmp_path / ".ci" / "run"], stdout=subprocess.PIPE) as process:
        process.communicate(timeout=90)
    assert process.returncode == status
