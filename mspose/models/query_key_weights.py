"""Query and key projections with a bounded largest singular value, as other work holds off the
collapse of attention entropy.

Each of M matrices W, of queries or of keys, is used as W_hat = (norm / sigma(W)) W, where sigma(W)
is the largest singular value of W, followed by power iteration, and `norm` that of W_hat.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def make_query_key_weights(name: str, weight_MCC: Tensor) -> "NormalizedWeights | None":
    """Parametrisation `name` of matrices that start as `weight_MCC`; None for `plain`.

    `sigma-reparam` (Zhai et al., Stabilizing Transformer Training by Preventing Attention Entropy
    Collapse, ICML 2023): W_hat = (gamma / sigma(W)) W with a learned gamma that starts at 1.
    `spectral-norm` (improved spectral normalisation; Lee et al., ViTGAN, ICLR 2022): W_hat =
    sigma(W_init) W / sigma(W), so that a matrix keeps the largest singular value of its start.
    """
    if name == "plain":
        return None
    return NormalizedWeights(
        weight_MCC, learns_norm={"sigma-reparam": True, "spectral-norm": False}[name]
    )


class NormalizedWeights(nn.Module):
    """Matrices scaled to a largest singular value of `norm_M`, which is learned from 1 on, or stays
    at that of the start.

    Attributes:
        u_MC, v_MC: left and right singular vectors of the largest singular value, exact at the
            start; a forward pass in training takes them one power iteration further. Gradients
            treat them as constants.
    """

    u_MC: Tensor
    v_MC: Tensor
    norm_M: Tensor

    def __init__(self, weight_MCC: Tensor, *, learns_norm: bool) -> None:
        super().__init__()
        left_MCC, sigma_MC, right_MCC = torch.linalg.svd(weight_MCC.detach())
        self.register_buffer("u_MC", left_MCC[:, :, 0].clone())
        self.register_buffer("v_MC", right_MCC[:, 0].clone())
        if learns_norm:
            self.norm_M = nn.Parameter(torch.ones_like(sigma_MC[:, 0]))
        else:
            self.register_buffer("norm_M", sigma_MC[:, 0].clone())

    def forward(self, weight_MCC: Tensor) -> Tensor:
        """Matrices as they are used, in the precision of `weight_MCC` also under autocast."""
        with torch.autocast(weight_MCC.device.type, enabled=False):
            if self.training:
                self._iterate(weight_MCC.detach())
            # copies, as the next pass changes the vectors before this one's gradient is taken
            u_M1C, v_MC1 = self.u_MC.clone()[:, None], self.v_MC.clone()[..., None]
            sigma_M11 = u_M1C @ weight_MCC @ v_MC1
            return weight_MCC * (self.norm_M[:, None, None] / sigma_M11)

    @torch.no_grad()
    def _iterate(self, weight_MCC: Tensor) -> None:
        v_MC = F.normalize((self.u_MC[:, None] @ weight_MCC)[:, 0], dim=-1)
        self.v_MC.copy_(v_MC)
        self.u_MC.copy_(F.normalize((weight_MCC @ v_MC[..., None])[..., 0], dim=-1))
