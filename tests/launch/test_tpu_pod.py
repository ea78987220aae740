"""launch/tpu_pod.sh, and what it runs on the workers, from create to delete."""

import os
import signal
import subprocess

import pytest
from fake_cloud import FOREVER, HOSTILE, SECRET, commands, commit, until


def test_a_run_on_a_pod_from_create_to_delete(cloud):
    commit_before = commit(cloud.checkout)
    cloud.does("entropy-rl", f'echo "$ENTROPY_RL_DISTRIBUTED $COLOUR" >>"$HOME/seen"; {FOREVER}')
    (cloud.path / "my env").write_text(f"WANDB_API_KEY={SECRET}\nCOLOUR='dark blue'\n")
    cloud.run("tpu_pod.sh", "create", "--spot", "--network=my net")
    (create,) = cloud.calls("gcloud", "create")
    assert {
        "my-pod",
        "--node-id=my-pod",
        "--zone=us-central2-b",
        "--spot",
        "--network=my net",
    } <= set(create)
    assert {"--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base", "--quiet"} <= set(
        create
    )

    printed = cloud.run(
        "tpu_pod.sh",
        "setup",
        ENV_FILE="my env",
        PREPARE="echo 'a  b' >>~/prepared",
        MOUNT="touch ~/mounted",
    )
    for vm in cloud.workers():
        assert (vm / "prepared").read_text() == "a  b\n"
        (vm / "mounted").unlink()
        assert (vm / "entropy_rl" / commit_before / "launch" / "tpu_worker.sh").exists()

    watcher = cloud.start("tpu_pod.sh", "run", *HOSTILE, RUN_ID="my-run")
    until(lambda: len(cloud.trained()) == 2)
    wanted = ["train", *HOSTILE, "--run.directory", "/mnt/my runs/my-run"]
    assert cloud.trained() == [wanted, wanted]
    assert all((vm / "mounted").exists() for vm in cloud.workers())
    assert all((vm / "seen").read_text() == "auto dark blue\n" for vm in cloud.workers())
    assert not list(cloud.path.rglob("pwned"))

    printed += cloud.run("tpu_pod.sh", "status")
    assert printed.count("running") == 2 and "ACTIVE" in printed and "my-run" in printed
    assert "watches my-pod already" in cloud.run("tpu_pod.sh", "run", code=2)

    printed += cloud.run("tpu_pod.sh", "stop")
    assert printed.count("exited 143") == 2
    out, err = watcher.communicate(timeout=10)
    assert watcher.returncode == 143, err
    printed += out + err

    # The same run at the same commit, though there is a newer one, and prepared once.
    commit(cloud.checkout)
    cloud.does("entropy-rl", "")
    printed += cloud.run("tpu_pod.sh", "run", RUNS="", ENV_FILE="", PREPARE="")
    assert cloud.trained()[2:] == [wanted, wanted]
    assert f"resuming my-run at commit {commit_before[:12]}" in printed and "is done" in printed
    assert all((vm / "prepared").read_text() == "a  b\n" for vm in cloud.workers())

    printed += cloud.run("tpu_pod.sh", "delete")
    (delete,) = cloud.calls("gcloud", "delete")
    assert {"my-pod", "--force"} <= set(delete)

    files = [path for path in cloud.path.glob(".local/**/*") if path.is_file()]
    state = "".join(path.read_text(errors="replace") for path in files)
    assert "my-run" in state
    for text in (printed, state, (cloud.path / "calls").read_text()):
        assert SECRET not in text


def test_a_pod_has_one_run_at_a_time_and_another_is_asked_for(cloud):
    cloud.does("entropy-rl", FOREVER)
    cloud.run("tpu_pod.sh", "create")
    watcher = cloud.start("tpu_pod.sh", "run", "--config", "c", RUN_ID="first")
    until(lambda: len(cloud.calls("gcloud", "ssh")) > 3)
    watcher.kill()  # as Ctrl-C: the run goes on
    watcher.communicate(timeout=10)
    assert "first still runs" in cloud.run(
        "tpu_pod.sh", "run", "--new", "--config", "other", code=2
    )
    cloud.run("tpu_pod.sh", "stop")
    cloud.does("entropy-rl", "")
    assert "other settings" in cloud.run("tpu_pod.sh", "run", "--config", "other", code=2)
    assert "other settings" in cloud.run("tpu_pod.sh", "run", code=2, RUN_ID="second")
    assert len(cloud.trained()) == 2
    other = cloud.run(
        "tpu_pod.sh", "run", "--new", "--config", "other", RUN_ID="second", RUNS="/mnt/b"
    )
    assert "second is done: /mnt/b/second" in other
    assert (
        cloud.trained()[2:]
        == [["train", "--config", "other", "--run.directory", "/mnt/b/second"]] * 2
    )


def test_a_preempted_slice_is_asked_for_again_and_the_run_resumes_there(cloud):
    cloud.does("entropy-rl", FOREVER)
    cloud.run("tpu_pod.sh", "create", "--spot")
    watcher = cloud.start(
        "tpu_pod.sh", "run", "--config", "c", ACCELERATOR_TYPE="", RUNTIME_VERSION=""
    )
    until(lambda: len(cloud.calls("gcloud", "ssh")) > 3)  # asked, installed, started, asked again
    assert len(cloud.trained()) == 2
    cloud.does("entropy-rl", "")
    (cloud.path / "preempt").touch()
    _, err = watcher.communicate(timeout=20)
    assert watcher.returncode == 0, err
    assert "SUSPENDED" in err and "restart 1 of 20" in err
    first, second = cloud.calls("gcloud", "create")
    assert first == second and "--spot" in second
    assert len(cloud.trained()) == 4 and len({tuple(call) for call in cloud.trained()}) == 1


@pytest.mark.parametrize("code, starts", [(2, 1), (1, 3), (143, 3)])
def test_a_run_that_dies_is_restarted_on_all_workers_and_not_for_ever(cloud, code, starts):
    # The other worker hangs, as in a collective operation, and ends some time after.
    cloud.does("entropy-rl", f'case "$HOME" in */0) exit {code} ;; esac; sleep 0.3; exit 134')
    cloud.run("tpu_pod.sh", "create")
    printed = cloud.run(
        "tpu_pod.sh", "run", "--config", "c", code=2 if code == 2 else 1, MAX_RESTARTS="2"
    )
    assert len(cloud.trained()) == 2 * starts
    assert ("bad input" if code == 2 else "restarted 2 times") in printed


def test_a_run_that_is_stopped_during_its_mount_does_not_begin(cloud):
    cloud.does("entropy-rl", FOREVER)
    cloud.run("tpu_pod.sh", "create")
    # Before the command: `setup` and `run` mount before, too.
    mount = (
        "if [ -e ~/slow ] && [ -e ~/entropy_rl/runs/r/group ]; then touch ~/mounting; sleep 99; fi"
    )
    cloud.run("tpu_pod.sh", "setup", MOUNT=mount)
    for vm in cloud.workers():
        (vm / "slow").touch()
    watcher = cloud.start("tpu_pod.sh", "run", "--config", "c", RUN_ID="r")
    until(lambda: all((vm / "mounting").exists() for vm in cloud.workers()))
    printed = cloud.run("tpu_pod.sh", "stop")
    assert printed.count("absent") == 2 and "No such file" not in printed
    _, err = watcher.communicate(timeout=10)
    assert watcher.returncode == 143, err
    assert not cloud.trained()

    for vm in cloud.workers():
        (vm / "slow").unlink()
    cloud.does("entropy-rl", "")
    cloud.run("tpu_pod.sh", "run")
    assert len(cloud.trained()) == 2


def test_a_slice_that_is_refused_is_asked_for_a_bounded_number_of_times(cloud):
    (cloud.path / "fail-create").write_text("99")
    printed = cloud.run("tpu_pod.sh", "create", code=1, TRIES="3")
    assert len(cloud.calls("gcloud", "create")) == 3 and "was refused" in printed
    (cloud.path / "fail-create").write_text("2")
    cloud.run("tpu_pod.sh", "create", TRIES="3")


def test_a_request_that_fails_is_made_again_a_bounded_number_of_times(cloud):
    printed = cloud.run("tpu_pod.sh", "create", code=1, TRIES="3", CREATED="FAILED")
    assert len(cloud.calls("gcloud", "create")) == 3
    assert len(cloud.calls("gcloud", "delete")) == 3 and "lost 3 times" in printed


def test_waiting_for_a_slice_ends_and_leaves_the_request_in_the_queue(cloud):
    printed = cloud.run(
        "tpu_pod.sh", "create", code=1, CREATED="WAITING_FOR_RESOURCES", PATIENCE="1"
    )
    assert "stays in the queue" in printed and not cloud.calls("gcloud", "delete")
    (cloud.path / "state").write_text("ACTIVE\n")
    cloud.run("tpu_pod.sh", "create")
    assert len(cloud.calls("gcloud", "create")) == 1


def test_workers_that_do_not_answer_are_asked_again_and_not_for_ever(cloud):
    cloud.does("entropy-rl", "")
    cloud.run("tpu_pod.sh", "create")
    (cloud.path / "fail-ssh").write_text("2")
    cloud.run("tpu_pod.sh", "run", "--config", "c")
    (cloud.path / "fail-ssh").write_text("99")
    printed = cloud.run("tpu_pod.sh", "run", code=1, TRIES="1")
    assert "do not answer" in printed and not cloud.calls("gcloud", "delete")
    # A node that was preempted, while its request is still said to be active.
    (cloud.path / "fail-ssh").write_text("1")
    cloud.run("tpu_pod.sh", "run", NODE="PREEMPTED")
    assert len(cloud.calls("gcloud", "create")) == 2


def test_a_slice_that_somebody_deleted_is_not_asked_for_by_a_run(cloud):
    cloud.run("tpu_pod.sh", "create")
    cloud.run("tpu_pod.sh", "delete")
    assert "`create` asks for it" in cloud.run("tpu_pod.sh", "run", "--config", "c", code=1)
    assert len(cloud.calls("gcloud", "create")) == 1


def test_logs_follow_one_worker(cloud):
    cloud.does("entropy-rl", 'echo "I am ${HOME##*/}"')
    cloud.run("tpu_pod.sh", "create")
    cloud.run("tpu_pod.sh", "run", "--config", "c")
    for number in (0, 1):
        follower = cloud.start("tpu_pod.sh", "logs", "--worker", str(number))
        lines = []
        until(lambda: lines.append(follower.stdout.readline()) or f"I am {number}\n" in lines)  # noqa: B023
        tail = subprocess.check_output(
            ["pgrep", "-f", f"tail .*{cloud.path}/vm/{number}/"], text=True
        )
        os.kill(int(tail), signal.SIGTERM)
        follower.communicate(timeout=10)


@pytest.mark.parametrize("verb", ["create", "setup", "run", "delete"])
def test_a_dry_run_of_a_pod_calls_nothing_and_prints_what_a_run_calls(cloud, verb):
    cloud.does("entropy-rl", "")
    for before in ["create", "setup"][: ["create", "setup", "run", "delete"].index(verb)]:
        cloud.run("tpu_pod.sh", before)
    arguments = HOSTILE if verb == "run" else []
    called = len(cloud.calls("gcloud"))
    state = sorted(cloud.path.glob(".local/**/*"))
    process = cloud.start("tpu_pod.sh", verb, "--dry-run", *arguments, RUN_ID="r")
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert len(cloud.calls("gcloud")) == called and sorted(cloud.path.glob(".local/**/*")) == state
    cloud.run("tpu_pod.sh", verb, *arguments, RUN_ID="r")
    printed = commands(out, "gcloud")
    assert printed and cloud.calls("gcloud")[called:][: len(printed)] == printed


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("POLL", "soon", "number of seconds"),
        ("POLL", "-1", "number of seconds"),
        ("PAUSE", "1s", "whole number"),
    ],
)
def test_a_setting_that_is_no_number_is_refused_before_anything_is_asked_for(
    cloud, name, value, kind
):
    error = cloud.run("tpu_pod.sh", "status", code=2, **{name: value})
    assert error.rstrip().endswith(f"{name} must be a {kind}, got {value}")
    assert not cloud.calls("gcloud")


def test_a_number_with_a_leading_zero_is_decimal(cloud):
    script = "source launch/cloud.sh; need_numbers PAUSE; echo $((PAUSE * 2))"
    env = cloud.env | {"PAUSE": "08"}
    assert (
        subprocess.check_output(["bash", "-c", script], env=env, text=True, cwd=cloud.checkout)
        == "16\n"
    )
