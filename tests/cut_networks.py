"""Networks with whole neurons cut away: made random, with a guide, and what they compute."""

from __future__ import annotations

import torch
from torch import nn

import pyrostoch as ps
from pyrostoch import priors
from pyrostoch.effects import MeanPropagation
from pyrostoch.guides import prune_groups


def made_random(net):
    """Biases and normalization as training may leave them: nothing is zero or one."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_()
                if module.running_mean is not None:
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2.0)
            elif isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.normal_(0.0, 0.3)
                module.weight.mul_(2.0)
    return net


def bayes(net, prior=None):
    prior = priors.Normal() if prior is None else prior
    return ps.BayesianModel(made_random(net), prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=9)


def cut(net, x, by="norm", **kwargs):
    model = bayes(net, kwargs.pop("prior", None))
    guide = ps.guides.Additive(model)
    return prune_groups(model, guide, x, by=by, **({"amount": 0.4} | kwargs))


def outputs(net, x):
    with torch.no_grad(), MeanPropagation():
        return net(x)
