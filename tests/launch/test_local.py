"""launch/local_multiprocess.sh: several processes on this machine."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from fake_cloud import FOREVER, HOSTILE, Cloud, commands, until


def local(cloud: Cloud, *arguments: str, **env: str) -> tuple[subprocess.Popen, Path]:
    logs = cloud.path / "log files"
    return cloud.start("local_multiprocess.sh", "--logs", str(logs), *arguments, **env), logs


SHOW = (
    'echo "$ENTROPY_RL_DISTRIBUTED|$JAX_PLATFORMS|$XLA_FLAGS"; '
    'number="${ENTROPY_RL_DISTRIBUTED##*,}";'
)


def test_local_processes_are_joined_by_one_address_and_have_devices_of_their_own(cloud):
    cloud.does("entropy-rl", SHOW)
    process, logs = local(cloud, "--processes", "3", "--devices", "4", *HOSTILE, XLA_FLAGS="--a=b")
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert cloud.trained() == [["train", *HOSTILE]] * 3
    ports = set()
    for number in range(3):
        assert f"process {number}: {logs}/process-{number}.log" in err
        joined, platform, flags = (logs / f"process-{number}.log").read_text().strip().split("|")
        host, port = joined.split(",")[0].split(":")
        ports.add(port)
        assert (host, *joined.split(",")[1:]) == ("127.0.0.1", "3", str(number))
        assert platform == "cpu"
        assert flags == (
            "--xla_cpu_collective_call_terminate_timeout_seconds=600 "
            "--a=b --xla_force_host_platform_device_count=4"
        )
    assert len(ports) == 1


@pytest.mark.parametrize(
    ("sent", "number"),
    [
        ([signal.SIGTERM], signal.SIGTERM),
        ([signal.SIGINT], signal.SIGINT),
        ([signal.SIGHUP, signal.SIGHUP], signal.SIGTERM),  # a terminal that ends sends two
    ],
)
def test_local_processes_are_told_of_a_signal_once_and_waited_for(cloud, sent, number):
    # Not ignored, as where the suite runs in the background of a shell or under nohup: bash could
    # not trap it then.
    for one, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, lambda *_: None),
    ):
        if signal.getsignal(one) is signal.SIG_IGN:
            signal.signal(one, handler)
    # A second signal ends it at once, as it does a run.
    save = f"trap - {number.value}; echo told; sleep 0.6; echo saved; exit {128 + number}"
    cloud.does("entropy-rl", f"{SHOW} trap '{save}' {number.value}; while :; do sleep 0.05; done")
    process, logs = local(cloud, "--config", "c")
    until(
        lambda: (
            len(cloud.trained()) == 2 and all("|" in path.read_text() for path in logs.iterdir())
        )
    )
    time.sleep(0.1)  # the trap is set
    for one in sent:
        process.send_signal(one)
        time.sleep(0.25)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number, err
    for path in logs.iterdir():
        assert path.read_text().splitlines()[1:] == ["told", "saved"]


def test_a_message_to_a_terminal_that_has_gone_ends_no_script(cloud):
    script = 'source "$1"; say gone; echo "goes on"'
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(
            ["bash", "-c", script, "bash", str(cloud.checkout / "launch" / "cloud.sh")],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
        ).stdout
    assert said == "goes on\n"


@pytest.mark.parametrize("code", [1, 2, 137])
def test_when_a_local_process_dies_the_others_are_ended_and_its_code_is_the_result(cloud, code):
    cloud.does("entropy-rl", f"{SHOW} if [ $number = 1 ]; then exit {code}; fi; {FOREVER}")
    process, _ = local(cloud, "--processes", "3", "--config", "c")
    _, err = process.communicate(timeout=10)
    assert process.returncode == code, err
    assert "process 1 died by itself: ending the others" in err
    assert (
        "process 0 ended with exit code 143" in err and "process 2 ended with exit code 143" in err
    )


def test_a_local_process_that_does_not_end_is_killed(cloud):
    cloud.does(
        "entropy-rl",
        f"{SHOW} if [ $number = 1 ]; then sleep 0.3; exit 1; fi; trap '' TERM; exec sleep 60",
    )
    process, _ = local(cloud, "--config", "c", GRACE="1")
    _, err = process.communicate(timeout=10)
    assert process.returncode == 1 and "still there after 1 s: killed" in err


def test_a_grace_that_is_no_number_is_refused(cloud):
    err = cloud.run("local_multiprocess.sh", "--config", "c", code=2, GRACE="30s")
    assert "GRACE must be a whole number, got 30s" in err and not cloud.trained()


def test_a_dry_run_of_local_processes_prints_them_and_starts_none(cloud):
    dry = cloud.run("local_multiprocess.sh", "--dry-run", "--processes", "2", *HOSTILE)
    first, second = commands(dry, "env")
    assert first[-len(HOSTILE) :] == HOSTILE == second[-len(HOSTILE) :]
    assert first != second and not cloud.trained()
