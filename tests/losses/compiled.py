"""Derivatives as one program each, which is what makes these tests quick."""

import jax


def grad(function, argnums=0, **options):
    """`jax.grad`, compiled."""
    return jax.jit(jax.grad(function, argnums, **options))


def value_and_grad(function, argnums=0, **options):
    """`jax.value_and_grad`, compiled."""
    return jax.jit(jax.value_and_grad(function, argnums, **options))
