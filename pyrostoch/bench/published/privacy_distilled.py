"""A distilled data set: a few learned images, on which a network that knows nothing is trained in a few steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Distilled"]

# The start of the learned rates of gradient descent.
_RATE = 0.02


class Distilled(nn.Module):
    r"""A network that is trained anew on learned images in each pass, and then reads what it is given.

    From parameters $\theta_0$ that are drawn for each pass, $\theta_{t+1} = \theta_t - \eta_t \nabla_\theta
    \ell(\tilde x_t, \theta_t)$ for some steps, each with images and a rate of its own. Trained by the loss of what it
    reads, the images become those from which most is learned.

    Args:
        make: Makes a network of classes, with parameters that are drawn.
        shape: Shape of an image.
        num_classes: Number of classes.
        steps: Number of steps.
        per_class: Images of each class in a step.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> distilled = Distilled(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2), 3, 2, 1)
        >>> distilled.images.shape, distilled(torch.zeros(5, 1, 2, 2)).shape
        (torch.Size([2, 3, 1, 2, 2]), torch.Size([5, 3]))

    References:
        Wang, Zhu, Torralba, Efros, "Dataset distillation", 2018.
    """

    #: The class of each image of a step.
    labels: Tensor

    def __init__(
        self, make: Callable[[], nn.Module], shape: tuple[int, ...], num_classes: int, steps: int, per_class: int
    ) -> None:
        super().__init__()
        self.images = nn.Parameter(torch.randn(steps, num_classes * per_class, *shape))
        self.log_rates = nn.Parameter(torch.full((steps,), _RATE).log())
        self.register_buffer("labels", torch.arange(num_classes).repeat_interleave(per_class))
        self._make = make
        # Not a part of this module: its parameters are drawn in each pass.
        self._network = [make().requires_grad_(False)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a network that has learned from the images alone, (batch, classes).

        Args:
            x: What it reads.
        """
        network = self._network[0]
        drawn = self._make().to(x.device)
        parameters = {name: p.detach().requires_grad_(True) for name, p in drawn.named_parameters()}
        with torch.enable_grad():
            for images, log_rate in zip(self.images, self.log_rates, strict=True):
                loss = F.cross_entropy(torch.func.functional_call(network, parameters, (images,)), self.labels)
                found = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
                rate = log_rate.exp()
                parameters = {
                    name: p - rate * gradient for (name, p), gradient in zip(parameters.items(), found, strict=True)
                }
        logits: Tensor = torch.func.functional_call(network, parameters, (x,))
        return logits
