"""Restoring only the parameters of a checkpoint, with the model's shapes and sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.runs.checkpoint import Checkpoints, reported_failure, restore_params
from entropy_rl.types import TrainState

PARAMS = {
    "dense": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)},
    "scale": np.ones(4, np.float32),
}


def shapes(params):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    state = TrainState(
        jax.tree.map(jnp.asarray, PARAMS), {"mu": jnp.ones(2)}, jnp.int32(3), jnp.int32(3)
    )
    with Checkpoints(directory, keep=1) as open_checkpoints:
        open_checkpoints.save(state)
    return directory


def test_parameters_without_a_mesh_are_arrays_of_the_device(checkpoints, caplog):
    params = restore_params(checkpoints, shapes(PARAMS))
    assert caplog.records == []  # orbax warns of a manager that only reads
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (PARAMS | {"bias": np.ones(3)}, "bias: must be (3,), as in the model, got nothing"),
        (
            PARAMS | {"dense": {"kernel": np.ones((2, 5))}},
            "dense/kernel: must be (2, 5), as in the model, got (2, 3)",
        ),
        ({"dense": PARAMS["dense"]}, "scale: must be absent, as in the model, got (4,)"),
    ],
)
def test_a_checkpoint_with_parameters_of_another_model_is_refused_in_a_line(
    checkpoints, model, difference
):
    with pytest.raises(ValueError) as error:
        restore_params(checkpoints, shapes(model))
    assert str(error.value) == f"{checkpoints / '3'}: {difference}"


def test_a_lost_process_is_not_reported_as_a_checkpoint_that_could_not_be_written(tmp_path):
    def fail(text):
        with reported_failure(tmp_path, "a checkpoint"):
            raise ValueError(text)

    with pytest.raises(OSError, match="a checkpoint could not be written: Permission denied"):
        fail("writing failed [os_error_code='13']")
    with pytest.raises(jax.errors.JaxRuntimeError, match="Connection closed by peer"):
        fail("UNKNOWN: Gloo AllGather failed: Connection closed by peer")


def test_after_a_checkpoint_of_a_cpu_the_next_update_reuses_the_memory_of_the_state(tmp_path):
    update = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    weights, one = {"w": jnp.ones(2**23)}, jnp.int32(1)
    state = update(TrainState(weights, {"mu": jnp.ones(2)}, one, jnp.copy(one)))
    place = state.params["w"].unsafe_buffer_pointer()
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(state)
        assert update(state).params["w"].unsafe_buffer_pointer() == place
