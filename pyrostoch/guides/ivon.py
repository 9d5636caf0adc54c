"""The posterior that the optimizer IVON has found, as a guide."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyrostoch._checks import name_list
from pyrostoch._manual import see
from pyrostoch.guides.additive import Additive
from pyrostoch.model import BayesianModel
from pyrostoch.sites import Site

__all__ = ["from_ivon"]


def from_ivon(model: BayesianModel, optimizer: Any) -> Additive:
    r"""The normal posterior that IVON (`ivon-opt`) has found for a network, as an `Additive` guide.

    $$ q(w) = N\left(m,\; \frac{1}{\lambda\,(h + \delta)}\right) $$

    with the network's parameters m, the optimizer's estimate h of the Hessian of the mean loss, its effective sample
    size $\lambda$ (`ess`) and $\delta$ (`weight_decay`). What IVON maximizes is the ELBO of a model with
    $\lambda = N$ and the prior $N(0, 1/(\lambda\delta))$; the guide takes the values, and `decompose` computes the ELBO
    under the model's own prior.

    Args:
        model: A model of the trained network; its random weights are those with a prior.
        optimizer: The optimizer, outside of its `sampled_params()`.

    Returns:
        A guide at these values, which `fit` may train further.

    Raises:
        TypeError: It is no such optimizer.
        ValueError: A random weight is no parameter that the optimizer has trained.

    References:
        Shen, Daheim, Cong, Nickl, Marconi, Bazan, Yokota, Gurevych, Cremers, Khan, Möllenhoff, "Variational learning is
        effective for large deep networks", 2024.

    Example:
        >>> import torch, pyrostoch as ps
        >>> from types import SimpleNamespace
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Gaussian(0.1),
        ...                          num_data=100)
        >>> group = {"params": [net.weight], "ess": 100.0, "weight_decay": 0.01, "hess": torch.tensor([0.03, 0.99])}
        >>> optimizer = SimpleNamespace(param_groups=[group])  # as ivon.IVON(net.parameters(), lr=0.1, ess=100) has it
        >>> from_ivon(model, optimizer).site_distribution("weight").stddev.detach()
        tensor([[0.5000, 0.1000]])
    """
    scales: dict[int, Tensor] = {}
    for group in getattr(optimizer, "param_groups", ()):
        if not {"hess", "ess", "weight_decay"} <= set(group):
            break
        scale = (group["ess"] * (group["hess"].double() + group["weight_decay"])).rsqrt()
        parameters = [parameter for parameter in group["params"] if parameter is not None]
        parts = scale.split([parameter.numel() for parameter in parameters])
        scales |= {id(parameter): part for parameter, part in zip(parameters, parts, strict=True)}
    if not scales:
        raise TypeError(
            f"from_ivon: expected an optimizer ivon.IVON (pip install ivon-opt), got {type(optimizer).__name__}, whose "
            f"groups have no Hessian{see('how-to/ensembles')}"
        )
    parameters_by_name = dict(model.net.named_parameters(remove_duplicate=False))
    unknown = [name for name in model.sites if id(parameters_by_name.get(name)) not in scales]
    if unknown:
        raise ValueError(
            f"from_ivon: expected a model whose random weights the optimizer has trained, but {name_list(unknown)} "
            f"{'is' if len(unknown) == 1 else 'are'} not among its parameters; make the model from the very network "
            f"that the optimizer was given, with fixed priors{see('how-to/ensembles')}"
        )

    def scale_of(site: Site) -> Tensor:
        return scales[id(parameters_by_name[site.name])].reshape(site.init.shape)

    return Additive(model, init_scale=scale_of)
