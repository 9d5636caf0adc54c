r"""KL divergences of a Gaussian weight that depend on one number: the ratio of its variance to its squared mean.

For $q = N(\mu, \alpha\mu^2)$ the divergences to the log-uniform prior and to the ARD prior are functions of $\alpha$
alone. Each is given in two forms: as a function of `log_alpha`, for multiplicative noise, and as a function of the
signal-to-noise ratio $\mu / \sigma = \pm\alpha^{-1/2}$, for a Gaussian with free mean and scale. In the second form the
divergence is a smooth even function that is 0 at $\mu = 0$. Both forms are twice differentiable everywhere, and neither
overflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyrostoch.distributions.bounded_ratio import BoundedRatio
from pyrostoch.distributions.known_slope import with_slope
from pyrostoch.distributions.log_uniform_slope import log_uniform_slope, log_uniform_slope_of_snr
from pyrostoch.distributions.polynomial import polynomial

# Coefficients of P and Q (see kl_log_uniform), from the constant term up, fitted in 50 digits to the integral of
# Dawson's function for log alpha in [-20, 20].
_NUMERATOR_32 = (
    0.5096883317597547,
    -0.19609114214108378,
    1.0294882772885927,
    0.4188687884062993,
    0.4477525630896272,
    0.5780927299304807,
    -0.08221355244272562,
    0.07104235531054685,
    -0.011041819183196439,
)
_DENOMINATOR_32 = (
    0.2335841245971777,
    0.29200357205244765,
    0.5233115212367144,
    0.8779194587979962,
    0.8936969644474438,
    0.7976376693744499,
    0.5084734537495432,
    0.18815773206955697,
    0.03922577854150017,
)
_NUMERATOR_64 = (
    0.9510722985876789,
    -3.3658629705416976,
    6.138860213054883,
    -5.0483891191218735,
    -0.07984196450880622,
    6.553453919940769,
    -7.467177620003789,
    4.211783187082653,
    1.6144515206739714,
    -3.00252891263894,
    2.605553587516264,
    -0.1159540414202644,
    -0.2833113956309635,
    0.40696927637824754,
    -0.08436050600223939,
    0.008962695273590254,
    0.0007945134867046808,
)
_DENOMINATOR_64 = (
    0.4358651718191103,
    -0.8299707226196025,
    0.6618457822476604,
    0.9585779157117386,
    -1.4246845174461604,
    1.1412866246416777,
    0.9592375299839122,
    -0.5597401839155075,
    0.9939321090099378,
    0.7239063401242739,
    0.3257600867766912,
    0.629013257649678,
    0.3942628303580592,
    0.22346337296583552,
    0.12270915659491596,
    0.03192771332603644,
    0.005686444049467928,
)
# v = 1 / (1 + 12 alpha) is one half at alpha = 1 / 12.
_MIDPOINT = 12.0

# k1, k2, k3 of the approximation of Molchanov et al. 2017.
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695

# Above this argument torch's softplus returns its argument; at the default of 20 the error would be 2e-9.
_LINEAR_FROM = 50.0


def kl_log_uniform(log_alpha: Tensor) -> Tensor:
    r"""Exact $KL(N(\mu, \alpha\mu^2) \,\|\, \text{LogUniform})$ in nats, elementwise.

    With $s = 1/\sqrt{2\alpha}$ and Dawson's function $D$ it is
    $2\int_0^s D(x)\,dx = s^2\,{}_2F_2(1, 1; \tfrac{3}{2}, 2; -s^2)$,
    which falls from about $-\tfrac{1}{2}\log\alpha$ to 0 as $\alpha$ grows. Its derivative in $\log\alpha$ is
    $-s D(s)$. It is computed as $\tfrac{1}{2}\log(1 + 1/\alpha) + v^2 P(2v - 1) / Q(2v - 1)$ with
    $v = 1 / (1 + 12\alpha)$: two positive terms and one rational function, of degree 8 (float32; half precision is
    computed in float32) or 16 (float64). Relative error for $\log\alpha$ in [-20, 20]: below 1e-14 in float64, below
    1e-6 in float32.

    Args:
        log_alpha: $\log\alpha$, any shape, any value (the result is finite far outside [-20, 20], 0 at plus infinity).

    Returns:
        The divergences, in the shape and dtype of `log_alpha`; twice differentiable.

    Example:
        >>> kl_log_uniform(torch.tensor([-8.0, 0.0, 8.0]))
        tensor([4.6350e+00, 4.2669e-01, 1.6772e-04])

    References:
        Kingma, Salimans, Welling 2015, "Variational Dropout and the Local Reparameterization Trick" (the prior);
        Hron, Matthews, Ghahramani 2018, "Variational Bayesian Dropout: Pitfalls and Fixes" (the integral).
    """
    return _with_slope(_at_least_float32(log_alpha), _kl_log_uniform, log_uniform_slope).to(log_alpha.dtype)


def kl_log_uniform_molchanov(log_alpha: Tensor) -> Tensor:
    r"""The usual approximation of `kl_log_uniform`: off by up to 0.0094 nats, and by up to 3.4 % of the value.

    $k_1(1 - \text{sigmoid}(k_2 + k_3 \log\alpha)) + \tfrac{1}{2}\log(1 + 1/\alpha)$ with $k_1 = 0.63576$,
    $k_2 = 1.8732$, $k_3 = 1.48695$. Use it to compare with published figures.

    Args:
        log_alpha: $\log\alpha$, any shape.

    Returns:
        The approximate divergences in nats, in the shape and dtype of `log_alpha`.

    Example:
        >>> kl_log_uniform_molchanov(torch.tensor(0.0))
        tensor(0.4312)

    References:
        Molchanov, Ashukha, Vetrov 2017, "Variational Dropout Sparsifies Deep Neural Networks", equation 14.
    """
    t = _at_least_float32(log_alpha)
    return (_kl_ard(t) + _K1 * torch.sigmoid(-_K2 - _K3 * t)).to(log_alpha.dtype)


def kl_ard(log_alpha: Tensor) -> Tensor:
    r"""KL of $N(\mu, \alpha\mu^2)$ to `ARD`, elementwise: $\tfrac{1}{2} \log(1 + 1/\alpha)$ nats.

    It is $KL(N(\mu, \alpha\mu^2) \,\|\, N(0, \tau^2))$ at its minimum, $\tau^2 = \mu^2 + \alpha\mu^2$.

    Args:
        log_alpha: $\log\alpha$, any shape.

    Returns:
        The divergences, in the shape and dtype of `log_alpha`.

    Example:
        >>> kl_ard(torch.tensor(0.0))
        tensor(0.3466)

    References:
        Tipping 2001, "Sparse Bayesian Learning and the Relevance Vector Machine";
        Kharitonov, Molchanov, Vetrov 2018, "Variational Dropout via Empirical Bayes" (arXiv 1811.00596).
    """
    return _kl_ard(_at_least_float32(log_alpha)).to(log_alpha.dtype)


def kl_log_uniform_of_snr(snr: Tensor) -> Tensor:
    """`kl_log_uniform` as a function of the signal-to-noise ratio `loc / scale`, smooth also at zero."""
    return _with_slope(_at_least_float32(snr), _kl_log_uniform_of_snr, log_uniform_slope_of_snr).to(snr.dtype)


def kl_log_uniform_molchanov_of_snr(snr: Tensor) -> Tensor:
    """`kl_log_uniform_molchanov` as a function of the signal-to-noise ratio `loc / scale`."""
    ratio = BoundedRatio(_at_least_float32(snr))
    return (ratio.half_log1p_square() + _K1 * ratio.odds(2 * _K3, math.exp(_K2))).to(snr.dtype)


def kl_ard_of_snr(snr: Tensor) -> Tensor:
    """`kl_ard` as a function of the signal-to-noise ratio `loc / scale`."""
    return BoundedRatio(_at_least_float32(snr)).half_log1p_square().to(snr.dtype)


#: The two forms of a divergence: as a function of log alpha, and as a function of the signal-to-noise ratio.
AlphaKL = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
LOG_UNIFORM_KL: AlphaKL = (kl_log_uniform, kl_log_uniform_of_snr)
MOLCHANOV_KL: AlphaKL = (kl_log_uniform_molchanov, kl_log_uniform_molchanov_of_snr)
ARD_KL: AlphaKL = (kl_ard, kl_ard_of_snr)


def _with_slope(x: Tensor, value: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Tensor:
    """A divergence with its slope in closed form, which is known to single precision; torch finds it in double."""
    return with_slope(x, value, slope) if x.dtype == torch.float32 else value(x)


def _kl_log_uniform(t: Tensor) -> Tensor:
    return _kl_ard(t) + _log_uniform_minus_ard(torch.sigmoid(-t - math.log(_MIDPOINT)))


def _kl_log_uniform_of_snr(snr: Tensor) -> Tensor:
    ratio = BoundedRatio(snr)
    return ratio.half_log1p_square() + _log_uniform_minus_ard(ratio.odds(2.0, _MIDPOINT))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _kl_ard(t: Tensor) -> Tensor:
    return softplus(-t, threshold=_LINEAR_FROM) / 2


def _log_uniform_minus_ard(v: Tensor) -> Tensor:
    """The log-uniform divergence minus the ARD divergence, as a function of `v = 1 / (1 + 12 alpha)`."""
    w = 2 * v - 1
    if v.dtype == torch.float64:
        return v.square() * (polynomial(_NUMERATOR_64, w) / polynomial(_DENOMINATOR_64, w))
    return v.square() * (polynomial(_NUMERATOR_32, w) / polynomial(_DENOMINATOR_32, w))
