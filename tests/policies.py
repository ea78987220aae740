"""Policies for tests: a table whose probabilities are known exactly, and a tiny decoder; meshes."""

import jax
import jax.numpy as jnp

from entropy_rl.config.common import MeshConfig
from entropy_rl.distributed.sharding import make_mesh
from entropy_rl.models.decoder import DecoderConfig, make_policy
from entropy_rl.models.rope import Llama3RopeScaling
from entropy_rl.types import Policy


def table_policy(vocab_size: int) -> Policy:
    """The next token depends on the current one alone: logits = params["table"][id]."""

    def hidden(ids):
        return jax.nn.one_hot(ids, vocab_size)

    def prefill(params, prompt_ids, prompt_mask):
        last = prompt_mask.sum(-1) - 1
        return hidden(jnp.take_along_axis(prompt_ids, last[:, None], axis=1)[:, 0]), ()

    return Policy(
        init=lambda key: {"table": jax.random.normal(key, (vocab_size, vocab_size))},
        apply=lambda params, ids: hidden(ids),
        apply_packed=lambda params, ids, packed: hidden(ids),
        prefix=lambda params, ids, packed, columns: (),
        head=lambda params: params["table"].T,
        to_decode=lambda params: params,
        prefill=prefill,
        empty_rows=lambda rows, columns: (),
        decode=lambda params, ids, t, cache: (hidden(ids), cache),
        extend=lambda params, ids, t, count, cache: cache,
    )


TINY = DecoderConfig(
    vocab_size=37,  # unlike any other size, so that logits can be found among a program's shapes
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    norm_eps=1e-6,
    qkv_bias=True,
    qk_norm=True,
    tie_embeddings=False,
    rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 16),
    initializer_range=0.3,
)


_INIT = jax.jit(make_policy(TINY).init)  # else each of its operations is a program


def tiny_policy(**kwargs) -> Policy:
    """A decoder with every switch on, small enough to compile in a second."""
    return make_policy(TINY, **kwargs)._replace(init=_INIT)


def mesh_of(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
    """A mesh of the first of the eight devices."""
    return make_mesh(MeshConfig(data, fsdp, tensor))
