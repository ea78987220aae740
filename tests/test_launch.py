"""The launch scripts, run for real on a cloud that is not there: stubs on the PATH record their arguments.

The stub of gcloud has two workers, each a directory that is its HOME: it copies files there and runs there
what is sent by ssh.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ["tpu_pod.sh", "tpu_worker.sh", "gke.sh", "xpk.sh", "slurm.sbatch", "local_multiprocess.sh"]
AWKWARD = 'it\'s "quoted"; $(touch pwned) `id` & | > \\ * $HOME $$ ${NAME}'
HOSTILE = ["--config", "a b.yaml", "--x", AWKWARD, "--empty", ""]
SECRET = "hush-hush-42"

RECORD = """#!/bin/bash
printf -v call '%s\\x1f' "${0##*/}" "$@"
printf '%s\\x1e' "$call" >>"$STUB/calls" # at once: there are two workers
if [ -e "$STUB/${0##*/}.sh" ]; then source "$STUB/${0##*/}.sh"; fi
"""
GCLOUD = r"""
for flag; do
    case "$flag" in --worker=*) worker="${flag#*=}" ;; --command=*) command="${flag#*=}" ;; esac
done
fails() { # as often as the file says
    local left; left="$(cat "$STUB/fail-$1" 2>/dev/null || echo 0)"
    ((left > 0)) && echo "$((left - 1))" >"$STUB/fail-$1"
}
if fails "$4"; then echo "ERROR: transient" >&2; exit 1; fi
case "$3 $4" in
    "queued-resources create") mkdir -p "$STUB/vm/0" "$STUB/vm/1"; echo "${CREATED:-ACTIVE}" >"$STUB/state" ;;
    "queued-resources describe")
        if [ -e "$STUB/preempt" ]; then
            for pid in "$STUB"/vm/*/entropy_rl/runs/*/pid; do kill -KILL "$(cat "$pid")"; done
            rm -rf "$STUB/vm" "$STUB/preempt"
            echo SUSPENDED >"$STUB/state"
        fi
        if [ ! -e "$STUB/state" ]; then echo "ERROR: NOT_FOUND: Resource" >&2; exit 1; fi
        cat "$STUB/state" ;;
    "queued-resources delete") rm -rf "$STUB/vm" "$STUB/state" ;;
    "tpu-vm describe") echo "${NODE:-READY}" ;;
    "tpu-vm scp")
        files=(); for word in "${@:5}"; do case "$word" in -*) ;; *) files+=("$word") ;; esac; done
        for vm in "$STUB"/vm/*; do cp -p "${files[0]}" "$vm/${files[1]#*:}"; done ;;
    "tpu-vm ssh")
        [ "$worker" = all ] && worker='*'
        pids=(); code=0
        for vm in "$STUB"/vm/$worker; do (cd "$vm" && HOME="$vm" bash -c "$command") 9>&- & pids+=($!); done
        for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
        exit "$code" ;;
esac
"""
STUBS = ["gcloud", "kubectl", "xpk", "sky", "sbatch", "srun", "scancel", "scontrol", "squeue"]
STUBS += ["ssh", "scp", "uv", "entropy-rl"]
# What the stub of entropy-rl does unless a test says otherwise: run until it is told to stop.
FOREVER = "trap 'exit 143' TERM INT; while :; do sleep 0.05; done"


class Cloud:
    """A checkout with the scripts, stubs on the PATH, and what the stubs were called with."""

    def __init__(self, path: Path, checkout: Path):
        self.path, self.checkout = path, checkout
        self.processes: list[subprocess.Popen] = []
        (path / "bin").mkdir()
        for name in STUBS:
            (path / "bin" / name).write_text(RECORD)
            (path / "bin" / name).chmod(0o755)
        self.does("gcloud", GCLOUD)
        self.env = {
            "PATH": f"{path / 'bin'}:/usr/bin:/bin",
            "HOME": str(path),
            "STUB": str(path),
            "POLL": "0.05",
            "PAUSE": "0",
            "TPU_NAME": "my-pod",
            "ZONE": "us-central2-b",
            "ACCELERATOR_TYPE": "v4-16",
            "RUNTIME_VERSION": "tpu-ubuntu2204-base",
            "RUNS": "gs://bucket/my runs",
        }

    def does(self, name: str, text: str) -> None:
        (self.path / f"{name}.sh").write_text(text)

    def start(self, script: str, *arguments: str, **env: str) -> subprocess.Popen:
        process = subprocess.Popen(
            ["bash", str(self.checkout / "launch" / script), *arguments],
            env={**self.env, **env},
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(self, script: str, *arguments: str, code: int = 0, **env: str) -> str:
        """Runs a script to its end; returns what it printed, errors last."""
        process = self.start(script, *arguments, **env)
        out, err = process.communicate(timeout=20)
        assert process.returncode == code, out + err
        return out + err

    def calls(self, name: str, *words: str) -> list[list[str]]:
        """Arguments of the calls of a stub that have all the words."""
        path = self.path / "calls"
        text = path.read_text() if path.exists() else ""
        calls = [call.split("\x1f")[:-1] for call in text.split("\x1e")[:-1]]
        return [call[1:] for call in calls if call[0] == name and set(words) <= set(call)]

    def workers(self) -> list[Path]:
        return sorted((self.path / "vm").glob("*"))


def until(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("check out")
    shutil.copytree(LAUNCH, path / "launch")
    (path / "requirements.lock").write_text("")
    (path / "setup.py").write_text("")
    commit(path)
    return path


def commit(path: Path) -> str:
    git = ["git", "-C", str(path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(path), "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=x"], check=True)
    return subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()


@pytest.fixture
def cloud(tmp_path, checkout):
    cloud = Cloud(tmp_path, checkout)
    yield cloud
    for process in cloud.processes:  # nothing outlives its test
        process.kill()
        process.communicate(timeout=10)
    for vm in cloud.workers():
        for pid in vm.glob("entropy_rl/runs/*/pid"):
            subprocess.run(["kill", "-KILL", pid.read_text().strip()], check=False, capture_output=True)


def trained(cloud: Cloud) -> list[list[str]]:
    return cloud.calls("entropy-rl")


def test_a_run_on_a_pod_from_create_to_delete(cloud):
    commit_before = commit(cloud.checkout)
    cloud.does("entropy-rl", f'echo "$ENTROPY_RL_DISTRIBUTED $COLOUR" >>"$HOME/seen"; {FOREVER}')
    (cloud.path / "my env").write_text(f"WANDB_API_KEY={SECRET}\nCOLOUR='dark blue'\n")
    cloud.run("tpu_pod.sh", "create", "--spot", "--network=my net")
    (create,) = cloud.calls("gcloud", "create")
    assert {"my-pod", "--node-id=my-pod", "--zone=us-central2-b", "--spot", "--network=my net"} <= set(create)
    assert {"--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base", "--quiet"} <= set(create)

    printed = cloud.run("tpu_pod.sh", "setup", ENV_FILE="my env", PREPARE="echo 'a  b' >>~/prepared")
    for vm in cloud.workers():
        assert (vm / "prepared").read_text() == "a  b\n"
        assert (vm / "entropy_rl" / commit_before / "launch" / "tpu_worker.sh").exists()

    watcher = cloud.start("tpu_pod.sh", "run", *HOSTILE, RUN_ID="my-run")
    until(lambda: len(trained(cloud)) == 2)
    wanted = ["train", *HOSTILE, "--run.directory", "gs://bucket/my runs/my-run"]
    assert trained(cloud) == [wanted, wanted]
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
    assert trained(cloud)[2:] == [wanted, wanted]
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
    assert "first still runs" in cloud.run("tpu_pod.sh", "run", "--new", "--config", "other", code=2)
    cloud.run("tpu_pod.sh", "stop")
    cloud.does("entropy-rl", "")
    assert "other settings" in cloud.run("tpu_pod.sh", "run", "--config", "other", code=2)
    assert "other settings" in cloud.run("tpu_pod.sh", "run", code=2, RUN_ID="second")
    assert len(trained(cloud)) == 2
    other = cloud.run("tpu_pod.sh", "run", "--new", "--config", "other", RUN_ID="second", RUNS="gs://b")
    assert "second is done: gs://b/second" in other
    assert trained(cloud)[2:] == [["train", "--config", "other", "--run.directory", "gs://b/second"]] * 2


def test_a_preempted_slice_is_asked_for_again_and_the_run_resumes_there(cloud):
    cloud.does("entropy-rl", FOREVER)
    cloud.run("tpu_pod.sh", "create", "--spot")
    watcher = cloud.start("tpu_pod.sh", "run", "--config", "c", ACCELERATOR_TYPE="", RUNTIME_VERSION="")
    until(lambda: len(cloud.calls("gcloud", "ssh")) > 3)  # asked, installed, started, asked again
    assert len(trained(cloud)) == 2
    cloud.does("entropy-rl", "")
    (cloud.path / "preempt").touch()
    _, err = watcher.communicate(timeout=20)
    assert watcher.returncode == 0, err
    assert "SUSPENDED" in err and "restart 1 of 20" in err
    first, second = cloud.calls("gcloud", "create")
    assert first == second and "--spot" in second
    assert len(trained(cloud)) == 4 and len({tuple(call) for call in trained(cloud)}) == 1


@pytest.mark.parametrize("code, starts", [(2, 1), (1, 3), (143, 3)])
def test_a_run_that_dies_is_restarted_on_all_workers_and_not_for_ever(cloud, code, starts):
    # The other worker hangs, as in a collective operation, and ends some time after.
    cloud.does("entropy-rl", f'case "$HOME" in */0) exit {code} ;; esac; sleep 0.3; exit 134')
    cloud.run("tpu_pod.sh", "create")
    printed = cloud.run("tpu_pod.sh", "run", "--config", "c", code=2 if code == 2 else 1, MAX_RESTARTS="2")
    assert len(trained(cloud)) == 2 * starts
    assert ("bad input" if code == 2 else "restarted 2 times") in printed


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
    printed = cloud.run("tpu_pod.sh", "create", code=1, CREATED="WAITING_FOR_RESOURCES", PATIENCE="1")
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
        tail = subprocess.check_output(["pgrep", "-f", f"tail .*{cloud.path}/vm/{number}/"], text=True)
        os.kill(int(tail), signal.SIGTERM)
        follower.communicate(timeout=10)


def commands(printed: str, name: str) -> list[list[str]]:
    return [words[1:] for line in printed.splitlines() if (words := shlex.split(line)) and words[0] == name]


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


NEEDED = {
    "tpu_pod.sh": ["TPU_NAME", "ZONE", "ACCELERATOR_TYPE", "RUNTIME_VERSION"],
    "gke.sh": ["NAME", "IMAGE", "TPU_ACCELERATOR", "TPU_TOPOLOGY", "HOSTS", "CHIPS_PER_HOST", "RUNS"],
    "xpk.sh": ["NAME", "CLUSTER", "ZONE", "TPU_TYPE", "IMAGE", "RUNS"],
    "slurm.sbatch": ["RUNS"],
}
GKE = {
    "NAME": "my-set",
    "IMAGE": "docker.pkg.dev/p/r/entropy_rl:1",
    "TPU_ACCELERATOR": "tpu-v6e-slice",
    "TPU_TOPOLOGY": "4x4",
    "HOSTS": "4",
    "CHIPS_PER_HOST": "4",
}
XPK = {"NAME": "my-work", "CLUSTER": "c", "TPU_TYPE": "v5litepod-16", "IMAGE": "gcr.io/p/e:1"}


@pytest.mark.parametrize("script, name", [(script, name) for script in NEEDED for name in NEEDED[script]])
def test_a_variable_that_is_missing_is_named_with_an_example(cloud, script, name):
    arguments = ["create"] if script == "tpu_pod.sh" else ["--config", "c"]
    env = {**GKE, **XPK, "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(cloud.checkout)}
    (line,) = cloud.run(script, *arguments, code=2, **{**env, name: ""}).splitlines()
    assert f"{name} is not set: " in line and f"for example: export {name}=" in line
    assert not (cloud.path / "calls").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_comment_at_the_head(cloud, script):
    printed = cloud.run(script, "--help")
    assert script in printed and "SBATCH" not in printed and "#!/" not in printed
    assert not (cloud.path / "calls").exists()


@pytest.mark.parametrize("script", ["tpu_pod.sh", "gke.sh", "xpk.sh", "slurm.sbatch"])
def test_a_secret_in_the_command_is_refused_and_not_repeated(cloud, script):
    env = {**GKE, **XPK, "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(cloud.checkout), "HF_TOKEN": SECRET}
    arguments = ["run"] if script == "tpu_pod.sh" else []
    printed = cloud.run(script, *arguments, "--x", f"a{SECRET}", code=2, **env)
    if script == "tpu_pod.sh":
        printed += cloud.run(script, "setup", code=2, HF_TOKEN=SECRET, PREPARE=f"hf login {SECRET}")
    assert "HF_TOKEN" in printed and SECRET not in printed
    assert not (cloud.path / "calls").exists()


def manifest(cloud: Cloud) -> dict:
    return yaml.safe_load((cloud.path / "applied").read_text())


def expanded(word: str) -> str:
    """What Kubernetes makes of a word without variables in it."""
    return word.replace("$$", "$")


def test_gke_fills_the_manifest_and_applies_it(cloud):
    cloud.does("kubectl", 'cat >"$STUB/applied"')
    dry = cloud.run("gke.sh", "--dry-run", *HOSTILE, **GKE)
    assert not cloud.calls("kubectl") and "kubectl apply --filename=-" in dry
    cloud.run("gke.sh", *HOSTILE, **GKE)
    assert cloud.calls("kubectl") == [["apply", "--filename=-"]]
    assert (cloud.path / "applied").read_text() in dry
    job = manifest(cloud)
    assert job["kind"] == "JobSet" and job["metadata"]["name"] == "my-set"
    (slice_,) = job["spec"]["replicatedJobs"]
    pods = slice_["template"]["spec"]
    assert (pods["parallelism"], pods["completions"], pods["backoffLimit"]) == (4, 4, 0)
    assert job["spec"]["failurePolicy"]["maxRestarts"] == 20
    assert pods["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    pod = pods["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    (container,) = pod["containers"]
    assert container["name"] == pods["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert {"name": "ENTROPY_RL_DISTRIBUTED", "value": "auto"} in container["env"]
    wanted = ["entropy-rl", "train", *HOSTILE, "--run.directory", "gs://bucket/my runs/my-set"]
    assert [expanded(word) for word in container["command"]] == wanted
    assert "${" not in json.dumps({**job, "spec": {**job["spec"], "replicatedJobs": []}})


def test_gke_refuses_a_value_that_would_change_the_manifest(cloud):
    assert "IMAGE" in cloud.run("gke.sh", "--config", "c", code=2, **{**GKE, "IMAGE": "x\n  evil: true"})
    assert "line break" in cloud.run("gke.sh", "--config", "a\nb", code=2, **GKE)
    assert not cloud.calls("kubectl")


def test_xpk_gets_one_command_that_its_shell_takes_apart_again(cloud):
    dry = cloud.run("xpk.sh", "--dry-run", *HOSTILE, ENV_FILE="my env", **XPK)
    assert not cloud.calls("xpk")
    cloud.run("xpk.sh", *HOSTILE, ENV_FILE="my env", **XPK)
    (call,) = cloud.calls("xpk")
    assert commands(dry, "xpk") == [call]
    assert call[:2] == ["workload", "create"]
    assert {"--workload=my-work", "--cluster=c", "--zone=us-central2-b"} <= set(call)
    assert {
        "--tpu-type=v5litepod-16",
        "--docker-image=gcr.io/p/e:1",
        "--env-file=my env",
        "--max-restarts=20",
    } <= set(call)
    (command,) = [word.removeprefix("--command=") for word in call if word.startswith("--command=")]
    cloud.does("entropy-rl", 'echo "$ENTROPY_RL_DISTRIBUTED"')
    ran = subprocess.check_output(["bash", "-c", command], env=cloud.env, cwd=cloud.path, text=True)
    assert ran == "auto\n"
    assert trained(cloud) == [["train", *HOSTILE, "--run.directory", "gs://bucket/my runs/my-work"]]


def slurm(cloud: Cloud) -> dict[str, str]:
    return {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(cloud.checkout), "SLURM_CPUS_PER_TASK": "8"}


def test_a_slurm_job_passes_sigterm_on_and_goes_back_into_the_queue(cloud):
    # The real ones: scancel signals the processes of the step, and srun ends with their exit code.
    cloud.does("srun", 'echo $$ >"$STUB/step"; trap "sleep 0.2; exit 143" TERM; while :; do sleep 0.05; done')
    cloud.does("scancel", 'kill -TERM "$(cat "$STUB/step")"')
    cloud.does("squeue", "echo RUNNING")
    job = cloud.start("slurm.sbatch", *HOSTILE, **slurm(cloud))
    until(lambda: (cloud.path / "step").exists() and (cloud.path / "step").read_text())
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=10)
    assert job.returncode == 143, err
    (srun,) = cloud.calls("srun")
    wanted = ["entropy-rl", "train", *HOSTILE, "--run.directory", "gs://bucket/my runs/7"]
    assert srun[-len(wanted) :] == wanted and "--cpus-per-task=8" in srun
    assert cloud.calls("scancel") == [["--signal=TERM", "7"]]
    assert cloud.calls("scontrol") == [["requeue", "7"]]


@pytest.mark.parametrize(
    "code, state, env",
    [
        (2, "RUNNING", {}),
        (0, "RUNNING", {}),
        (143, "COMPLETING", {}),
        (143, "RUNNING", {"SLURM_RESTART_COUNT": "20"}),
    ],
    ids=["bad input", "done", "cancelled", "too often"],
)
def test_a_slurm_job_is_not_requeued_when_it_is(cloud, code, state, env):
    cloud.does("srun", f"exit {code}")
    cloud.does("squeue", f"echo {state}")
    cloud.run("slurm.sbatch", "--config", "c", code=code, **slurm(cloud), **env)
    assert cloud.calls("srun") and not cloud.calls("scontrol")


def test_a_dry_run_of_a_slurm_job_prints_what_a_job_calls(cloud):
    dry = cloud.run("slurm.sbatch", "--dry-run", *HOSTILE, **slurm(cloud))
    assert not cloud.calls("srun")
    cloud.run("slurm.sbatch", *HOSTILE, **slurm(cloud))
    (call,) = cloud.calls("srun")
    assert commands(dry, "env") == [["ENTROPY_RL_DISTRIBUTED=auto", "srun", *call]]


def test_slurm_reads_its_options_from_the_head_of_the_script():
    head = (LAUNCH / "slurm.sbatch").read_text().split("\ncd ")[0]
    options = {line.removeprefix("#SBATCH ") for line in head.splitlines() if line.startswith("#SBATCH ")}
    assert {"--requeue", "--signal=B:TERM@120", "--gpus-per-node=8", "--ntasks-per-node=8"} <= options


def test_the_skypilot_job_has_what_a_recovered_run_needs():
    job = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert job["resources"]["use_spot"] is True
    assert job["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    assert job["envs"]["RUN_ID"] is None and job["envs"]["RUNS"] is None  # SkyPilot asks for them
    assert '--run.directory "$RUNS/$RUN_ID"' in job["run"] and "ENTROPY_RL_DISTRIBUTED=auto" in job["run"]
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", job[part]], check=True)


def local(cloud: Cloud, *arguments: str, **env: str) -> tuple[subprocess.Popen, Path]:
    logs = cloud.path / "log files"
    return cloud.start("local_multiprocess.sh", "--logs", str(logs), *arguments, **env), logs


SHOW = 'echo "$ENTROPY_RL_DISTRIBUTED|$JAX_PLATFORMS|$XLA_FLAGS"; number="${ENTROPY_RL_DISTRIBUTED##*,}";'


def test_local_processes_are_joined_by_one_address_and_have_devices_of_their_own(cloud):
    cloud.does("entropy-rl", SHOW)
    process, logs = local(cloud, "--processes", "3", "--devices", "4", *HOSTILE, XLA_FLAGS="--a=b")
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert trained(cloud) == [["train", *HOSTILE]] * 3
    ports = set()
    for number in range(3):
        assert f"process {number}: {logs}/process-{number}.log" in err
        joined, platform, flags = (logs / f"process-{number}.log").read_text().strip().split("|")
        host, port = joined.split(",")[0].split(":")
        ports.add(port)
        assert (host, *joined.split(",")[1:]) == ("127.0.0.1", "3", str(number))
        assert (platform, flags) == ("cpu", "--a=b --xla_force_host_platform_device_count=4")
    assert len(ports) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_processes_are_told_of_a_signal_once_and_waited_for(cloud, number):
    save = f"sleep 0.3; echo saved; exit {128 + number}"
    cloud.does("entropy-rl", f"{SHOW} trap 'echo told; {save}' {number.value}; while :; do sleep 0.05; done")
    process, logs = local(cloud, "--config", "c")
    until(lambda: len(trained(cloud)) == 2 and all("|" in path.read_text() for path in logs.iterdir()))
    time.sleep(0.1)  # the trap is set
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number, err
    for path in logs.iterdir():
        assert path.read_text().splitlines()[1:] == ["told", "saved"]


@pytest.mark.parametrize("code", [1, 2, 137])
def test_when_a_local_process_dies_the_others_are_ended_and_its_code_is_the_result(cloud, code):
    cloud.does("entropy-rl", f"{SHOW} if [ $number = 1 ]; then exit {code}; fi; {FOREVER}")
    process, _ = local(cloud, "--processes", "3", "--config", "c")
    _, err = process.communicate(timeout=10)
    assert process.returncode == code, err
    assert "process 1 died by itself: ending the others" in err
    assert "process 0 ended with exit code 143" in err and "process 2 ended with exit code 143" in err


def test_a_local_process_that_does_not_end_is_killed(cloud):
    cloud.does(
        "entropy-rl", f"{SHOW} if [ $number = 1 ]; then sleep 0.3; exit 1; fi; trap '' TERM; exec sleep 60"
    )
    process, _ = local(cloud, "--config", "c", GRACE="1")
    _, err = process.communicate(timeout=10)
    assert process.returncode == 1 and "still there after 1 s: killed" in err


def test_a_dry_run_of_local_processes_prints_them_and_starts_none(cloud):
    dry = cloud.run("local_multiprocess.sh", "--dry-run", "--processes", "2", *HOSTILE)
    first, second = commands(dry, "env")
    assert first[-len(HOSTILE) :] == HOSTILE == second[-len(HOSTILE) :]
    assert first != second and not trained(cloud)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", ["cloud.sh", *SCRIPTS])
def test_shellcheck_has_nothing_to_say(script):
    command = ["shellcheck", "--external-sources", f"launch/{script}"]
    checked = subprocess.run(command, cwd=LAUNCH.parent, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
