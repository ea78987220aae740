"""Checkpoints in a bucket: the run is that on a disk, whenever it is killed, and nobody else's."""

import contextlib
import importlib.util
import shutil
from pathlib import Path

import fsspec
import pytest
from etils.epath import backend
from etils.epath.gpath import PosixGPath
from fake_bucket import FakeBucket, FakeFiles, serve
from orbax.checkpoint._src.path import gcs_utils
from run_records import metrics_of

from entropy_rl.cli.main import main
from entropy_rl.runs import gcs as buckets
from entropy_rl.runs.checkpoint import newest_undamaged
from entropy_rl.runs.gcs import COMPLETE_FILE, file_sizes, open_path, set_aside

NAME = "gs://bucket/runs/a"


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket, which all clients of this process find."""
    bucket = FakeBucket()
    # Of an earlier bucket, if the tests of this file come in two parts.
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    with serve(bucket) as address, pytest.MonkeyPatch.context() as patch:
        for variable in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(variable, address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "project")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        if importlib.util.find_spec("gcsfs") is None:
            files = type("Files", (FakeFiles,), {"bucket": bucket})
            for protocol in FakeFiles.protocol:
                fsspec.register_implementation(protocol, files, clobber=True)
            patch.setattr(buckets, "_has_libraries", lambda: True)
            patch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
        yield bucket


@pytest.fixture(scope="module")
def on_disk(workspace) -> Path:
    """A run with its checkpoints in its directory, and its model."""
    with contextlib.chdir(workspace):
        assert main(train("disk")) == 0
        assert main(["export", "--model", "disk", "--output", "of_disk"]) == 0
    return workspace / "disk"


@pytest.fixture(scope="module")
def in_bucket(workspace, bucket) -> Path:
    """The same with its checkpoints in a bucket, stopped after three steps and gone on with."""
    with contextlib.chdir(workspace):
        assert main(train("cloud", "--run.checkpoints", NAME, "--steps", "3")) == 0
        assert main(train("cloud", "--run.checkpoints", NAME)) == 0
    return workspace / "cloud"


@pytest.fixture
def copied(bucket, in_bucket, monkeypatch) -> Path:
    """That run; changes to its checkpoints and its directory are undone afterwards."""
    objects = dict(bucket.objects)
    directory = shutil.copytree(in_bucket, in_bucket.with_name("before"))
    yield in_bucket
    bucket.objects.clear()
    bucket.objects.update(objects)
    shutil.rmtree(in_bucket)
    directory.rename(in_bucket)


def train(directory: str, *more: str) -> list[str]:
    return ["train", "--config", "train.yaml", "--run.directory", directory, *more]


def names_in(bucket: FakeBucket) -> set[str]:
    """What is in the directory of the checkpoints."""
    return {name.split("/")[2] for name in bucket.objects if name.startswith("runs/a/")}


def test_a_run_that_went_on_from_a_bucket_is_that_on_a_disk(on_disk, in_bucket, bucket):
    assert metrics_of(in_bucket) == metrics_of(on_disk)
    assert not (in_bucket / "checkpoints").exists()
    assert names_in(bucket) == {"config.yaml", "4", "6"}  # the newest two


def test_a_model_is_exported_from_the_bucket_of_its_run(on_disk, in_bucket, here):
    assert main(["export", "--model", "cloud", "--output", "of_cloud"]) == 0
    for file in (here / "of_disk").glob("*.safetensors"):
        assert (here / "of_cloud" / file.name).read_bytes() == file.read_bytes()


def test_a_checkpoint_in_a_bucket_without_its_last_object_is_none(
    on_disk, copied, bucket, here, capsys
):
    bucket.delete(f"runs/a/6/{COMPLETE_FILE}")
    leftover = "runs/a/6/state/ocdbt.process_7/manifest.ocdbt"
    bucket.write(leftover, b"of another number of processes")
    assert main(train("cloud", "--run.checkpoints", NAME)) == 0
    assert "resuming cloud after step 4 of 6" in capsys.readouterr().err
    assert metrics_of(copied) == metrics_of(on_disk)
    assert names_in(bucket) == {"config.yaml", "4", "6"} and leftover not in bucket.objects


def test_a_damaged_checkpoint_in_a_bucket_is_set_aside_and_the_one_before_is_used(
    on_disk, copied, bucket, here, capsys, caplog
):
    objects = {name for name in bucket.objects if name.startswith("runs/a/6/")}
    bucket.write("runs/a/6/state/manifest.ocdbt", b"")
    assert main(train("cloud", "--run.checkpoints", NAME)) == 0
    damage = f"{NAME}/6: damaged: state/manifest.ocdbt has 0 bytes instead of "
    assert caplog.messages[0].startswith(damage)
    assert caplog.messages[0].endswith("kept as damaged_6_0, and that of step 4 is used")
    assert "resuming cloud after step 4 of 6" in capsys.readouterr().err
    assert metrics_of(copied) == metrics_of(on_disk)
    assert names_in(bucket) == {"config.yaml", "4", "6", "damaged_6_0"}
    assert {
        name.replace("damaged_6_0", "6") for name in bucket.objects if "damaged" in name
    } == objects


@pytest.mark.parametrize("killed_in", ["copy", "unlink", "rmtree"])
def test_a_checkpoint_that_was_being_set_aside_is_damaged_or_gone(
    copied, bucket, killed_in, monkeypatch
):
    bucket.write("runs/a/6/state/manifest.ocdbt", b"")
    calls = iter(range(4 if killed_in == "copy" else 0))
    change = getattr(PosixGPath, killed_in)

    def killed(*arguments, **more):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return change(*arguments, **more)

    monkeypatch.setattr(PosixGPath, killed_in, killed)
    directory = open_path(NAME, "run.checkpoints")
    with pytest.raises(KeyboardInterrupt):
        set_aside(directory / "6", "damaged_6_0")
    step, damaged = newest_undamaged(directory)
    assert step == 4 and list(damaged) == ([] if killed_in == "rmtree" else [6])


def test_sizes_of_files_are_those_below_a_directory_on_a_disk_and_in_a_bucket(bucket, tmp_path):
    for name in ("a", "deep/er/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        bucket.write(f"sizes/{name}", name.encode())
    assert file_sizes(tmp_path) == {"a": 1, "deep/er/b": 9}
    assert file_sizes(open_path("gs://bucket/sizes", "")) == {"a": 1, "deep/er/b": 9}


# --- whose ----------------------------------------------------------------------------------------


def refused(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert main(train(*arguments)) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line.removeprefix("entropy-rl train: ")


def test_two_runs_do_not_share_a_place_for_checkpoints(in_bucket, here, capsys, tmp_path):
    assert refused(capsys, "other", "--run.checkpoints", NAME) == (
        f"run.checkpoints: {NAME} holds another run "
        "(its run.directory is 'cloud', here it is 'other'); "
        "repeat its settings to resume it, or choose another directory"
    )
    assert not (here / "other").exists()
    (tmp_path / "something").touch()
    line = refused(capsys, "other", "--run.checkpoints", str(tmp_path))
    assert line.startswith(f"run.checkpoints: {tmp_path} is not empty and holds no run")


def test_a_run_that_looks_for_its_checkpoints_elsewhere_does_not_begin_anew(
    in_bucket, here, capsys
):
    before = (in_bucket / "metrics.jsonl").read_text()
    for more in ((), ("--run.checkpoints", "gs://bucket/runs/b")):
        line = refused(capsys, "cloud", *more)
        assert line.startswith(
            f"run.directory: cloud holds another run (its run.checkpoints is {NAME!r}, here "
        )
    assert (in_bucket / "metrics.jsonl").read_text() == before


def test_checkpoints_on_another_disk_are_those_of_the_run(on_disk, here, tmp_path):
    elsewhere = str(tmp_path / "scratch")
    assert main(train("local", "--run.checkpoints", elsewhere)) == 0
    assert {path.name for path in (tmp_path / "scratch").iterdir()} == {"config.yaml", "4", "6"}
    assert main(["export", "--model", "local", "--output", "of_local"]) == 0
    [one], [other] = ((here / name).glob("*.safetensors") for name in ("of_disk", "of_local"))
    assert one.read_bytes() == other.read_bytes()
    assert metrics_of(here / "local") == metrics_of(on_disk)


@pytest.mark.parametrize("path", ["s3://bucket/a", "gs://bucket", "gs://bucket/", "scratch", ""])
def test_a_place_for_checkpoints_that_cannot_be_is_refused_in_a_line(here, capsys, path):
    line = refused(capsys, "nowhere", f"--run.checkpoints={path}")
    allowed = "null, gs://BUCKET/NAME, or an absolute path"
    assert line == f"run.checkpoints: must be {allowed}, got {path!r}"


@pytest.mark.parametrize("inside", ["", "checkpoints", "a/../b"])
@pytest.mark.parametrize("more", [[], ["--print_config"]], ids=["run", "print_config"])
def test_a_place_for_checkpoints_in_the_directory_of_the_run_is_refused(here, capsys, inside, more):
    path = str(here / "nowhere" / inside)
    line = refused(capsys, "nowhere", "--run.checkpoints", path, *more)
    allowed = "outside of run.directory, or null for nowhere/checkpoints"
    assert line == f"run.checkpoints: must be {allowed}, got {path!r}"
    assert not (here / "nowhere").exists()


def test_a_bucket_that_cannot_be_reached_is_told_in_a_line(bucket, here, capsys, monkeypatch):
    def fails(*_: object) -> bool:
        raise PermissionError("no credentials\nmore lines")

    monkeypatch.setattr("etils.epath.gpath.PosixGPath.exists", fails)
    line = refused(capsys, "nowhere", "--run.checkpoints", "gs://bucket/b")
    assert line == "run.checkpoints: gs://bucket/b cannot be reached: no credentials"
    monkeypatch.setattr(buckets, "_has_libraries", lambda: False)
    line = refused(capsys, "nowhere", "--run.checkpoints", "gs://bucket/b")
    assert "the libraries of buckets are not installed; `pip install 'gcsfs>=2025.3' " in line
    assert not (here / "nowhere").exists()
