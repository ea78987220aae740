"""launch/common.sh: the environment of the checkout is made once."""

import os
import shutil
import subprocess

import pytest
from fake_cloud import make_checkout

# Makes a .venv whose Python takes a moment to install something.
PYTHON = """#!/bin/bash
if [ "$2" = venv ]; then
    echo made >>venvs
    rm -rf .venv && mkdir -p .venv/bin
    printf '#!/bin/bash\\nsleep 0.2\\ntest -d .venv -a -z "$FAILS"\\n' >.venv/bin/python
    echo "#!$PWD/.venv/bin/python" >.venv/bin/entropy-rl
    chmod +x .venv/bin/*
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


def run(checkout, **env):
    process = start(checkout, **env)
    out, error = process.communicate(timeout=20)
    return process.returncode, out, error


def test_the_environment_of_a_copied_checkout_and_one_whose_python_is_gone_are_made_anew(checkout):
    assert run(checkout)[0] == 0
    copy = checkout.parent / "copy é"
    shutil.copytree(checkout, copy)
    assert run(copy)[0] == 0  # not the programs of the first, which run its code
    assert str(copy) in (copy / ".venv" / "bin" / "entropy-rl").read_text()
    (checkout / ".venv" / "bin" / "python").unlink()
    assert run(checkout)[0] == 0
    assert (checkout / ".venv" / "bin" / "python").exists()


def test_an_environment_of_the_user_is_used_and_never_cleared(checkout):
    own = checkout / ".venv" / "bin"
    own.mkdir(parents=True)
    code, _, error = run(checkout)
    assert (code, error) == (
        2,
        f"launch: {own.parent} must have entropy_rl or be moved away: "
        "this script did not make it\n",
    )
    (own / "entropy-rl").write_text("")
    (own / "entropy-rl").chmod(0o755)
    assert "installed: No such file" in run(checkout)[2]  # of `cat` in the script: it went on
    assert list(own.iterdir()) == [own / "entropy-rl"]
    assert not (checkout / "venvs").exists()


def test_an_installation_that_fails_is_begun_again(checkout):
    assert run(checkout, FAILS="1")[0] == 1
    assert run(checkout)[0] == 0
    assert (checkout / "venvs").read_text() == "made\n" * 2


def test_a_python_that_is_named_and_unfit_is_refused(checkout):
    code, out, error = run(checkout, PYTHON="/none/python")
    assert (code, out) == (1, "")
    assert error == "launch: PYTHON must be Python 3.11 or newer, got /none/python\n"


def test_cdpath_leads_no_script_astray(cloud, tmp_path):
    for where in (tmp_path / "elsewhere" / "launch", cloud.checkout / ".venv" / "bin"):
        where.mkdir(parents=True)
    (cloud.checkout / ".venv" / "bin" / "entropy-rl").symlink_to("/bin/true")
    env = cloud.env | {"CDPATH": f"{tmp_path / 'elsewhere'}:.", "RUNS": "/runs"}
    for command in (
        ["launch/tpu_pod.sh", "run", "--dry-run", "--config", "c"],
        ["launch/slurm.sbatch", "--dry-run", "--config", "c"],
        ["launch/tpu_worker.sh", "status", "x"],
        ["launch/quickstart.sh"],
    ):
        done = subprocess.run(
            ["bash", *command], cwd=cloud.checkout, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "elsewhere" not in done.stdout + done.stderr
        assert not done.stdout.startswith("/")


def test_the_sets_of_an_evaluation_are_all_checked_before_the_first_is_sampled(cloud):
    program = cloud.checkout / ".venv" / "bin" / "entropy-rl"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/bash\necho "$*" >>calls\n[[ "$*" != *"split $MISSING"* ]]\n')
    program.chmod(0o755)
    command = ["bash", "launch/evaluate_math.sh", "MODEL", "OUTPUT", "--seed", "1"]
    for missing, calls in (("math_500", 4), ("none", 8)):
        (cloud.checkout / "calls").unlink(missing_ok=True)
        env = cloud.env | {"MISSING": missing}
        done = subprocess.run(command, cwd=cloud.checkout, env=env, capture_output=True, text=True)
        assert done.returncode == (missing != "none"), done.stderr
        called = (cloud.checkout / "calls").read_text().splitlines()
        assert ["--print_config" in call for call in called] == [i < 4 for i in range(calls)]
        assert all("--model.path MODEL" in call and "--seed 1" in call for call in called)
