"""The relation loss of one earlier task against PyTorch's divergence, value and gradients."""

import jax
import numpy as np
import pytest

from jaxemb.losses import relation_distillation

torch = pytest.importorskip("torch")


def test_relation_distillation_is_kl_div_loss():
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(6, 4)).astype(np.float32) for name in ("f", "p", "old_f", "old_p")}
    loss = lambda f, p, old_f, old_p: relation_distillation(f, p, old_f, old_p, np.zeros(6, int)).mean()
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(*arrays.values())

    f, p, old_f, old_p = (torch.tensor(a, requires_grad=True) for a in arrays.values())
    scores = lambda f, p: f @ (p / p.norm(dim=1, keepdim=True)).T
    target = scores(old_f, old_p).softmax(dim=1).detach()
    expected = torch.nn.KLDivLoss(reduction="batchmean")(scores(f, p).log_softmax(dim=1), target)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    for ours, theirs in zip(gradients, (f.grad, p.grad), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
