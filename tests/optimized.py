"""Compiles a function as users do: the other tests are compiled with less optimization, which
never fuses a product with a sum, for example.
"""

from collections.abc import Callable

import jax

OPTIONS = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


def optimized(function: Callable) -> Callable:
    """The function, compiled with the compiler's default optimization."""
    return lambda *arguments: jax.jit(function).lower(*arguments).compile(OPTIONS)(*arguments)
