"""Damage of a checkpoint is found before it is used, down to a single bit."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.runs.checkpoint import Checkpoints, newest_undamaged, restore_params
from entropy_rl.runs.digests import describe_damage, sha256_of_values
from entropy_rl.types import TrainState

# Files of orbax beside the state, on which nothing depends that is restored.
BESIDE = ("_CHECKPOINT_METADATA", "commit_success.txt")


def state_at(step):
    kernel = jax.random.normal(jax.random.key(step), (16, 8))
    params = {"dense": {"kernel": kernel}, "scale": jnp.full(4, step, jnp.float32)}
    return TrainState(params, {"mu": jnp.ones(2)}, jnp.int32(step), jnp.int32(step))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(directory, keep=2) as checkpoints:
        for step in (3, 6):
            checkpoints.save(state_at(step))
    return directory


@pytest.fixture
def checkpoints(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def files_in(checkpoint):
    names = [path.relative_to(checkpoint) for path in sorted(checkpoint.rglob("*"))]
    return [str(name) for name in names if (checkpoint / name).is_file()]


def restored(directory):
    with Checkpoints(directory, keep=2) as checkpoints:
        return checkpoints.restore(jax.tree.map(jnp.zeros_like, state_at(0)))


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def messages_of(caplog):
    return [x.getMessage() for x in caplog.records if x.name == "entropy_rl.runs.checkpoint"]


def test_a_checkpoint_as_it_was_written_is_undamaged(written):
    names = set(json.loads((written / "6" / "digests.json").read_text())["blocks"])
    assert {name for name in files_in(written / "6") if name.startswith("state/")} == names
    assert any("/d/" in name for name in names) and len(names) > 6
    assert newest_undamaged(written) == (6, {})


def test_a_flipped_bit_in_any_file_is_found_and_the_checkpoint_before_is_used(checkpoints):
    draw = random.Random(0)
    tried = 0
    for name in files_in(checkpoints / "6"):
        if name in BESIDE:
            continue
        path = checkpoints / "6" / name
        content = path.read_bytes()
        bits = {0, 8 * len(content) - 1, *(draw.randrange(8 * len(content)) for _ in range(10))}
        for bit in bits:
            path.write_bytes(flipped(content, bit))
            step, damaged = newest_undamaged(checkpoints)
            assert step == 3 and list(damaged) == [6], (name, bit)
            assert name in damaged[6] or name in ("digests.json", "sizes.json"), (name, bit)
            tried += 1
        path.write_bytes(content)
    assert tried > 80
    assert newest_undamaged(checkpoints) == (6, {})


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("damage", [lambda content: flipped(content, 9), lambda content: b""])
def test_damage_of_what_orbax_keeps_beside_the_state_changes_nothing(checkpoints, name, damage):
    path = checkpoints / "6" / name
    path.write_bytes(damage(path.read_bytes()))
    jax.tree.map(np.testing.assert_array_equal, restored(checkpoints), state_at(6))


@pytest.mark.parametrize("size", [0, 1, 0.5, 0.99])
def test_a_truncated_file_is_found(checkpoints, size):
    for name in files_in(checkpoints / "6"):
        if name in BESIDE:
            continue
        path = checkpoints / "6" / name
        content = path.read_bytes()
        path.write_bytes(content[: size if isinstance(size, int) else int(size * len(content))])
        step, damaged = newest_undamaged(checkpoints)
        assert step == 3 and name in damaged[6]
        path.write_bytes(content)


def test_a_missing_file_is_found_but_for_the_sizes(checkpoints):
    for name in files_in(checkpoints / "6"):
        content = (checkpoints / "6" / name).read_bytes()
        (checkpoints / "6" / name).unlink()
        damage = describe_damage(checkpoints / "6")
        spared = name in (*BESIDE, "sizes.json")
        assert damage is None if spared else name in damage
        (checkpoints / "6" / name).write_bytes(content)


def test_a_damaged_checkpoint_is_set_aside_with_the_file_named(checkpoints, caplog):
    names = [name for name in files_in(checkpoints / "6") if "/ocdbt.process_0/d/" in name]
    data = max(names, key=lambda name: (checkpoints / "6" / name).stat().st_size)
    path = checkpoints / "6" / data
    path.write_bytes(flipped(path.read_bytes(), 1000))
    damage = f"{checkpoints / '6'}: damaged: the content of {data} has changed since it was written"
    params = restore_params(checkpoints, jax.eval_shape(lambda: state_at(0).params))
    assert messages_of(caplog) == [f"{damage}; that of step 3 is used"]
    np.testing.assert_array_equal(params["scale"], 3)
    caplog.clear()
    jax.tree.map(np.testing.assert_array_equal, restored(checkpoints), state_at(3))
    assert messages_of(caplog) == [f"{damage}; kept as damaged_6_0, and that of step 3 is used"]
    assert (checkpoints / "damaged_6_0" / data).exists() and not (checkpoints / "6").exists()


@pytest.mark.parametrize("number", ["7", "60", "4"])
def test_a_checkpoint_under_another_number_is_damaged(checkpoints, number):
    (checkpoints / "6").rename(checkpoints / number)
    step, damaged = newest_undamaged(checkpoints)
    assert (step, damaged) == (3, {int(number): "digests.json is of step 6"})


def test_a_checkpoint_of_an_earlier_version_is_read_if_its_number_is_that_of_its_state(checkpoints):
    for step in ("3", "6"):
        (checkpoints / step / "digests.json").unlink()
        sizes = json.loads((checkpoints / step / "sizes.json").read_text())
        sizes.pop("digests.json")
        (checkpoints / step / "sizes.json").write_text(json.dumps(sizes))
    jax.tree.map(np.testing.assert_array_equal, restored(checkpoints), state_at(6))
    (checkpoints / "6").rename(checkpoints / "8")
    line = "8: must hold the state of step 8, got that of step 6; delete it, and the one before "
    with pytest.raises(ValueError, match=line):
        restored(checkpoints)
    with pytest.raises(ValueError, match=line):
        restore_params(checkpoints, jax.eval_shape(lambda: state_at(0).params))


@pytest.mark.parametrize(
    ("content", "damage"),
    [
        ("[]", "digests.json is not a JSON object"),
        ('{"step": 6}', "digests.json has no digests"),
        ('{"step": 6, "blocks": 5}', "digests.json has no digests"),
        ('{"blocks": {}}', "digests.json is of step None"),
        ("[" * 5000, "digests.json is not JSON"),
        ('{"step": 6, "blocks": {"state/x": ""}}', "state/x is missing"),
    ],
)
def test_a_file_of_digests_with_other_content_is_damage(checkpoints, content, damage):
    (checkpoints / "6" / "sizes.json").unlink()
    (checkpoints / "6" / "digests.json").write_text(content)
    assert describe_damage(checkpoints / "6") == damage


def test_the_digest_of_values_tells_them_apart_and_knows_no_addresses():
    class Answer:
        pass

    assert sha256_of_values([Answer()]) == sha256_of_values([Answer()])
    assert sha256_of_values([{"b": 1, "a": {2}}]) == sha256_of_values([{"a": {2}, "b": 1}])
    array = np.arange(3, dtype=np.int32)
    values = [1, "1", [1], [[1], []], None, 1.5, array, array.astype(np.int64), array[:2]]
    assert len({sha256_of_values([value]) for value in values}) == len(values)
    assert sha256_of_values([1, 2]) != sha256_of_values([12]) != sha256_of_values([[1, 2]])
