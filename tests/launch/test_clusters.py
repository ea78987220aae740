"""Launch scripts for clusters and what all scripts share, with stand-ins for the tools."""

import re
import shutil
import signal
import subprocess

import pytest
import yaml
from fake_cloud import HOSTILE, LAUNCH, SECRET, Cloud, commands, until

ROOT = LAUNCH.parent

SCRIPTS = [
    "tpu_pod.sh",
    "tpu_worker.sh",
    "slurm.sbatch",
    "local_multiprocess.sh",
]
NEEDED = {
    "tpu_pod.sh": ["TPU_NAME", "ZONE", "ACCELERATOR_TYPE", "RUNTIME_VERSION"],
    "slurm.sbatch": ["RUNS"],
}


@pytest.mark.parametrize(
    "script, name", [(script, name) for script in NEEDED for name in NEEDED[script]]
)
def test_a_variable_that_is_missing_is_named_with_an_example(cloud, script, name):
    arguments = ["create"] if script == "tpu_pod.sh" else ["--config", "c"]
    env = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(cloud.checkout)}
    (line,) = cloud.run(script, *arguments, code=2, **{**env, name: ""}).splitlines()
    assert f"{name} is not set: " in line and f"for example: export {name}=" in line
    assert not (cloud.path / "calls").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_comment_at_the_head(cloud, script):
    printed = cloud.run(script, "--help")
    assert script in printed and "SBATCH" not in printed and "#!/" not in printed
    assert not (cloud.path / "calls").exists()


@pytest.mark.parametrize("script", ["tpu_pod.sh", "slurm.sbatch"])
def test_a_secret_in_the_command_is_refused_and_not_repeated(cloud, script):
    env = {
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(cloud.checkout),
        "HF_TOKEN": SECRET,
    }
    arguments = ["run"] if script == "tpu_pod.sh" else []
    printed = cloud.run(script, *arguments, "--x", f"a{SECRET}", code=2, **env)
    if script == "tpu_pod.sh":
        printed += cloud.run(script, "setup", code=2, HF_TOKEN=SECRET, PREPARE=f"hf login {SECRET}")
    assert "HF_TOKEN" in printed and SECRET not in printed
    assert not (cloud.path / "calls").exists()


def test_the_gke_manifest_of_the_docs_starts_one_process_per_host_and_resumes():
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "pods.md").read_text(), re.S)
    job = yaml.safe_load(block)
    assert job["kind"] == "JobSet" and job["spec"]["failurePolicy"]["maxRestarts"] == 20
    (slice_,) = job["spec"]["replicatedJobs"]
    pods = slice_["template"]["spec"]
    assert pods["parallelism"] == pods["completions"] == 4 and pods["backoffLimit"] == 0
    (rule,) = pods["podFailurePolicy"]["rules"]
    (container,) = pods["template"]["spec"]["containers"]
    assert rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert {"name": "ENTROPY_RL_DISTRIBUTED", "value": "auto"} in container["env"]
    assert container["command"][:2] == ["entropy-rl", "train"]


def slurm(cloud: Cloud) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(cloud.checkout),
        "SLURM_CPUS_PER_TASK": "8",
    }


def test_a_slurm_job_passes_sigterm_on_and_goes_back_into_the_queue(cloud):
    # The real ones: scancel signals the processes of the step, and srun ends with their exit code.
    cloud.does(
        "srun",
        'echo $$ >"$STUB/step"; trap "sleep 0.2; exit 143" TERM; while :; do sleep 0.05; done',
    )
    cloud.does("scancel", 'kill -TERM "$(cat "$STUB/step")"')
    cloud.does("squeue", "echo RUNNING")
    job = cloud.start("slurm.sbatch", *HOSTILE, **slurm(cloud))
    until(lambda: (cloud.path / "step").exists() and (cloud.path / "step").read_text())
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=10)
    assert job.returncode == 143, err
    (srun,) = cloud.calls("srun")
    wanted = ["entropy-rl", "train", *HOSTILE, "--run.directory", "/mnt/my runs/7"]
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
    ids=["bad input", "done", "canceled", "too often"],
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
    options = {
        line.removeprefix("#SBATCH ") for line in head.splitlines() if line.startswith("#SBATCH ")
    }
    assert {
        "--requeue",
        "--signal=B:TERM@120",
        "--gpus-per-node=8",
        "--ntasks-per-node=8",
    } <= options


def test_the_skypilot_job_has_what_a_recovered_run_needs():
    job = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert job["resources"]["use_spot"] is True
    assert job["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    assert job["envs"]["RUN_ID"] is None and job["envs"]["BUCKET"] is None  # SkyPilot asks for them
    assert (
        '--run.directory "/mnt/runs/$RUN_ID"' in job["run"]
        and "ENTROPY_RL_DISTRIBUTED=auto" in job["run"]
    )
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", job[part]], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    scripts = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), LAUNCH.parent / ".ci/run"]
    command = ["shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *scripts]
    checked = subprocess.run(command, cwd=LAUNCH.parent, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
