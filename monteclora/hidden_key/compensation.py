"""Divergences between two passes of a model (arXiv 2403.00812; the symmetric one is R-Drop, arXiv 2106.14448).

Pure functions of logits. Arithmetic is in fp32 (fp64 for fp64 arguments) and in log space. Both arguments are
differentiated; pass a tensor without gradient for what shall be a constant.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from monteclora.distributions import wide


def bidirectional_kl(logits: Tensor, other: Tensor) -> Tensor:
    """Sum over rows of 1/2 (KL(P1 || P2) + KL(P2 || P1)) in nats, a scalar, for two [..., classes] of logits.

    Both divergences together are 1/2 sum_c (p1_c - p2_c) (ln p1_c - ln p2_c): exactly 0 for equal logits.
    """
    log_p, log_q = F.log_softmax(wide(logits), dim=-1), F.log_softmax(wide(other), dim=-1)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum()


def one_sided_js(logits: Tensor, reference: Tensor) -> Tensor:
    """Sum over rows of KL(P1 || P) in nats, a scalar, for logits [..., classes] of a stochastic pass and of the pass
    without dropout, P. It is what the paper uses in place of the Jensen-Shannon divergence.
    """
    log_p, log_q = F.log_softmax(wide(logits), dim=-1), F.log_softmax(wide(reference), dim=-1)
    return torch.sum(log_p.exp() * (log_p - log_q))
