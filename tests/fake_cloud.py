"""A cloud that is not there: stubs on the PATH record their arguments, for tests of the scripts in
launch/.

The stub of gcloud has two workers, each a directory that is its HOME: it copies files there and
runs there what is sent by ssh.
"""

import shlex
import shutil
import subprocess
import time
from pathlib import Path

LAUNCH = Path(__file__).parents[1] / "launch"
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
    "queued-resources create")
        mkdir -p "$STUB/vm/0" "$STUB/vm/1"; echo "${CREATED:-ACTIVE}" >"$STUB/state" ;;
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
        for vm in "$STUB"/vm/$worker; do (cd "$vm" && HOME="$vm" bash -c "$command") 9>&- &
        pids+=($!); done
        for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
        exit "$code" ;;
esac
"""
STUBS = ["gcloud", "sky", "sbatch", "srun", "scancel", "scontrol", "squeue"]
STUBS += ["ssh", "scp", "uv", "entropy-rl"]
# The default of the stub of entropy-rl: run until it receives a signal.
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
            "RUNS": "/mnt/my runs",
        }

    def __enter__(self) -> "Cloud":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:  # nothing outlives its test
            process.terminate()
        for pid in self.path.glob("vm/*/entropy_rl/runs/*/pid"):
            subprocess.run(
                ["kill", "-KILL", pid.read_text().strip()], check=False, capture_output=True
            )
        for process in self.processes:
            process.communicate(timeout=10)

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

    def trained(self) -> list[list[str]]:
        """Arguments of all starts of entropy-rl, on any worker."""
        return self.calls("entropy-rl")

    def workers(self) -> list[Path]:
        return sorted((self.path / "vm").glob("*"))


def until(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def make_checkout(path: Path) -> Path:
    """A repository with the scripts in it."""
    shutil.copytree(LAUNCH, path / "launch")
    (path / "requirements.lock").write_text("")
    (path / "pyproject.toml").write_text("")
    commit(path)
    return path


def commit(path: Path) -> str:
    git = ["git", "-C", str(path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(path), "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=x"], check=True)
    return subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()


def commands(printed: str, name: str) -> list[list[str]]:
    return [
        words[1:]
        for line in printed.splitlines()
        if (words := shlex.split(line)) and words[0] == name
    ]
