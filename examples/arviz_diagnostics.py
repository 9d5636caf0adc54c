"""ArviZ: a guide beside NUTS
==========================

The posterior of the same model by a mean-field guide and by NUTS, in ArviZ's words and pictures.
"""

import arviz as az
import torch
from matplotlib import pyplot as plt
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value

import pyrostoch as ps

torch.manual_seed(0)
x = torch.randn(40, 2, dtype=torch.float64)
y = torch.sin(x[:, :1]) + 0.5 * x[:, 1:] + 0.3 * torch.randn(40, 1, dtype=torch.float64)

net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)).double()
model = ps.BayesianModel(net, prior=ps.priors.Normal(0.0, 1.0), likelihood=ps.likelihoods.Gaussian(0.3), num_data=40)
guide = ps.guides.Additive(model, init_scale=0.05)
ps.fit(model, guide, (x, y), epochs=1500, batch_size=40, lr=1e-2, num_particles=4, seed=0)

svi = ps.to_arviz(model, guide, (x, y), draws=500, seed=0)
print(az.summary(svi, var_names=["2.weight"], kind="stats"))
print(az.loo(svi))

# %%
# The posterior of a network has many equivalent modes: start the chain at the means of the guide.
start = {name: guide.site_distribution(name).mean.detach() for name in guide.site_names}
kernel = NUTS(model, init_strategy=init_to_value(values=start), max_tree_depth=5)
mcmc = MCMC(kernel, num_samples=200, warmup_steps=150, disable_progbar=True)
mcmc.run(x, y)
nuts = ps.from_mcmc(mcmc, model, (x, y))
print(az.loo(nuts))
both = {"mean-field guide": svi, "NUTS": nuts}
print(az.compare(both))

# %%
# The guide's intervals are narrower than those of NUTS: it has no correlations between weights.

if az.__version__.startswith("0."):
    az.plot_forest(list(both.values()), model_names=list(both), var_names=["2.weight"], combined=True)
else:
    az.plot_forest(both, var_names=["2.weight"], combined=True)
plt.show()
