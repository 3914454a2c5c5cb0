"""The relation loss of one earlier task against PyTorch's divergence, value and gradients."""

import numpy as np
from libraries import torch

from jaxemb.losses import relation_distillation

pytest_plugins = ["losses_oracle"]


def test_relation_distillation_is_kl_div_loss(agree):
    f, p, old_f, old_p = np.random.default_rng(0).normal(size=(4, 6, 4)).astype(np.float32)

    def theirs(f, p):
        scores = lambda f, p: f @ (p / p.norm(dim=1, keepdim=True)).T
        target = scores(torch.tensor(old_f), torch.tensor(old_p)).softmax(dim=1)
        return torch.nn.KLDivLoss(reduction="batchmean")(scores(f, p).log_softmax(dim=1), target)

    agree(lambda f, p: relation_distillation(f, p, old_f, old_p, np.zeros(6, int)).mean(), theirs, [f, p])
