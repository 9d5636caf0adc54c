"""How alike images are: mean squared error, peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pyrostoch._checks import check_positive

__all__ = ["psnr", "ssim"]

_WINDOW, _SPREAD = 11, 1.5
_K1, _K2 = 0.01, 0.03


def psnr(mse: float, value_range: float = 1.0) -> float:
    r"""The peak signal-to-noise ratio $10 \log_{10}(R^2 / \mathrm{MSE})$, in decibels.

    Args:
        mse: Mean squared error.
        value_range: R, the largest value less the smallest one that an image can have.

    Returns:
        Decibels; infinity for no error.

    Example:
        >>> round(psnr(0.01), 6)
        20.0
    """
    return math.inf if mse == 0 else 10.0 * math.log10(check_positive("psnr value_range", value_range) ** 2 / mse)


def ssim(one: Tensor, other: Tensor, value_range: float = 1.0) -> Tensor:
    r"""The structural similarity of pairs of images, 1 for equal ones.

    Means, variances and the covariance are taken under a Gaussian window of standard deviation 1.5 that is moved over
    the images, of 11 x 11 pixels, or of the largest odd size within smaller ones, wherever it lies inside; then

    $$ \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}{(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)} $$

    with $c_1 = (.01 R)^2$ and $c_2 = (.03 R)^2$ is averaged over places and channels.

    Args:
        one: Images, (batch, channels, height, width).
        other: Images of the same shape.
        value_range: R, the largest value less the smallest one that an image can have.

    Returns:
        A number for each pair, (batch,), float64.

    Raises:
        ValueError: Shapes do not fit.

    Example:
        >>> image = torch.rand(2, 1, 16, 16)
        >>> ssim(image, image)
        tensor([1., 1.], dtype=torch.float64)

    References:
        Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity",
        2004.
    """
    if one.dim() != 4 or one.shape != other.shape:
        raise ValueError(
            f"ssim: expected two batches of images (batch, channels, height, width) of one shape, got "
            f"{tuple(one.shape)} and {tuple(other.shape)}"
        )
    check_positive("ssim value_range", value_range)
    x, y = one.double().flatten(0, 1)[:, None], other.double().flatten(0, 1)[:, None]
    size = min(_WINDOW, *(side - 1 + side % 2 for side in x.shape[-2:]))
    places = torch.arange(size, dtype=torch.float64, device=x.device) - size // 2
    line = (-0.5 * (places / _SPREAD).square()).exp()
    window = torch.outer(line, line) / line.sum().square()

    def smooth(values: Tensor) -> Tensor:
        return F.conv2d(values, window[None, None])

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * value_range) ** 2, (_K2 * value_range) ** 2
    found = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    found = found / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return found.flatten(1).mean(1).reshape(one.shape[:2]).mean(1)
