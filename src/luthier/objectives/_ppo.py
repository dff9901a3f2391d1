"""The equations of proximal policy optimisation, each alone: advantages, whitening, both clipped losses, the adaptive KL coefficient.

Tensors are of answer tokens, fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.core.errors import DataError


def token_rewards(log_probs: Tensor, reference: Tensor, coefficient: float, reward: float) -> Tensor:
    """r_t = -coefficient (log pi(y_t) - log pi_ref(y_t)), and ``reward`` besides at the last token (Ouyang et al. 2022, equation 2, as
    Ziegler et al. 2019, section 2, spread it over tokens). All of one answer: (tokens)."""
    out = -coefficient * (log_probs - reference)
    out[-1] += reward
    return out


def advantages(rewards: Tensor, values: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantages and returns of one answer, (tokens) each (Schulman et al. 2016, equation 16).

    delta_t = r_t + gamma V_{t+1} - V_t, nothing comes after the last token, A_t = delta_t + gamma lambda A_{t+1}; the return is A_t + V_t.
    """
    given, known = rewards.tolist(), values.tolist()
    out = [0.0] * len(known)
    later = value_after = 0.0
    for t in range(len(known) - 1, -1, -1):
        later = given[t] + gamma * value_after - known[t] + gamma * gae_lambda * later
        out[t], value_after = later, known[t]
    found = torch.tensor(out, dtype=torch.float32)
    return found, found + values


def whitened(values: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all of them, the variance unbiased; one value alone stays as it is."""
    if len(values) < 2:
        return values
    return (values - values.mean()) * torch.rsqrt(values.var() + 1e-8)


def policy_losses(log_probs: Tensor, old: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """The loss of each token, max(-A rho, -A clamp(rho, 1 - clip, 1 + clip)) with rho = exp(log_probs - old) (Schulman et al. 2017,
    equation 7), and where the clamp decided it."""
    ratio = torch.exp(log_probs - old)
    plain, clamped = -advantage * ratio, -advantage * ratio.clamp(1.0 - clip, 1.0 + clip)
    return torch.maximum(plain, clamped), (clamped > plain).detach()


def value_losses(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error of each value, or of the value kept within ``clip`` of what it was, whichever is larger (Schulman et al. 2017,
    as its authors compute it)."""
    near = torch.minimum(torch.maximum(values, old - clip), old + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def adapted(coefficient: float, kl: float, target: float) -> float:
    """The next KL coefficient: it grows by up to 2% a step while ``kl`` is above ``target``, and shrinks below (Ziegler et al. 2019,
    section 2.2: K = 0.1, the error clipped to 0.2)."""
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + 0.1 * error)


def require_finite(rewards: Sequence[float], sources: Sequence[str]) -> None:
    """Raise DataError, naming rows, for rewards that are no numbers."""
    bad = [source for reward, source in zip(rewards, sources, strict=True) if not torch.isfinite(torch.tensor(reward))]
    if bad:
        raise DataError(
            f"the reward of an answer to {', '.join(bad[:5])} is not a finite number",
            hint="look at the reward model, or leave these rows out",
        )
