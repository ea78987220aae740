"""launch/common.sh: the environment of the checkout is made once."""

import os
import subprocess

import pytest
from fake_cloud import make_checkout

# Makes a .venv whose Python takes a moment to install something.
PYTHON = """#!/bin/bash
if [ "$2" = venv ]; then
    echo made >>venvs
    rm -rf .venv && mkdir -p .venv/bin
    printf '#!/bin/bash\\nsleep 0.2\\ntest -d .venv\\n' >.venv/bin/python
    chmod +x .venv/bin/python
fi
"""


@pytest.fixture
def checkout(tmp_path):
    path = make_checkout(tmp_path / "checkout")
    (path / "launch" / "show.sh").write_text(
        'source "$(dirname "${BASH_SOURCE[0]}")/common.sh"\ncat .venv/installed\n'
    )
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return path


def start(checkout, **env):
    return subprocess.Popen(
        ["bash", str(checkout / "launch" / "show.sh")],
        env={"PATH": os.environ["PATH"], "PYTHON": str(checkout.parent / "python")} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_scripts_that_are_started_together_make_one_environment(checkout):
    processes = [start(checkout), start(checkout)]
    printed = [process.communicate(timeout=20)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert printed[0] == printed[1] != ""
    assert (checkout / "venvs").read_text() == "made\n"


def test_without_flock_and_after_a_change_of_the_lock_file_the_environment_is_made(checkout):
    tools = checkout.parent / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "mkdir", "chmod", "rm", "sleep"):
        (tools / name).symlink_to(f"/bin/{name}" if name != "cksum" else "/usr/bin/cksum")
    for content in ("", "jax"):
        (checkout / "requirements.lock").write_text(content)
        for _ in range(2):  # the second one finds it
            process = start(checkout, PATH=str(tools))
            error = process.communicate(timeout=20)[1]
            assert process.returncode == 0, error
    assert (checkout / "venvs").read_text() == "made\n" * 2
