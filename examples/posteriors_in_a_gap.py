"""Ten posteriors in a gap
========================

The same small network and the same data under ten posteriors, each a guide that the same verbs read. What the weights
do not know should grow in the gap, and beyond the data.
"""

from functools import partial

import torch
from matplotlib import pyplot as plt

import pyrostoch as ps

torch.manual_seed(0)
x = torch.cat([torch.rand(30, 1) * 1.2 - 2.0, torch.rand(30, 1) * 1.2 + 0.8]).double()
y = torch.sin(2 * x) + 0.1 * torch.randn_like(x)
data = (x, y)


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1)).double()


noise = ps.likelihoods.Gaussian(0.1)
model = ps.BayesianModel(network(), prior={"*": ps.priors.Normal(0.0, 1.0)}, likelihood=noise, num_data=len(x))

# All data in each step, so that an epoch is a step.
settings = {"batch_size": len(x), "schedule": "cosine", "seed": 0, "progress": False, "compile": False}
grid = torch.linspace(-3, 3, 200)[:, None].double()
bands = {}


def show(title: str, guide: torch.nn.Module, mode: str, model: ps.BayesianModel = model) -> None:
    bands[title] = ps.predict(model, guide, grid, mode=mode, seed=0)


# %%
# A point, and what is made from it: the curvature there (Laplace), the iterates of SGD around it (SWAG). The Laplace
# approximation trains its own means, and predicts by a linear function of the weights.

point = ps.guides.Delta(model)
ps.fit(model, point, data, epochs=1500, lr=3e-2, **settings)
show("One point", point, "mean")

laplace = ps.guides.Laplace(model, "full", init_loc=point, init_scale=1e-4)
ps.fit(model, laplace, data, epochs=3000, lr=2e-2, **settings)
print(ps.fit_laplace(model, laplace, data))
show("Laplace, linearized", laplace, "linearized")

swag = ps.guides.Swag(model, rank=20, start=200, init_loc=point)
momentum = partial(torch.optim.SGD, momentum=0.9)
constant = {**settings, "batch_size": 10, "schedule": "constant"}
ps.fit(model, swag, data, epochs=400, lr=1e-5, optimizer=momentum, **constant)
show("SWAG", swag, "mc:300")

# %%
# Guides that are trained by the ELBO: independent weights, then two with correlations, which start where they ended.

additive = ps.guides.Additive(model, init_scale=0.05)
ps.fit(model, additive, data, epochs=1500, lr=3e-2, **settings)
show("Independent weights", additive, "mc:300")

for title, make in {"Low rank": ps.guides.LowRank, "Matrix normal": ps.guides.MatrixNormal}.items():
    guide = make(model, init_loc=additive, init_scale=additive)
    ps.fit(model, guide, data, epochs=700, lr=3e-3, **settings)
    show(title, guide, "mc:300")

# %%
# A Bayesian last layer on features that are fixed: its posterior is exact.

features = ps.BayesianModel(network(), prior={"2.*": ps.priors.Normal(0.0, 1.0)}, likelihood=noise, num_data=len(x))
last = ps.guides.LastLayer(features)
ps.fit(features, last, data, epochs=700, lr=3e-2, estimator="moments:bound", **settings)
ps.fit_last_layer(features, last, data)
show("Last layer, exact", last, "moments", features)

# %%
# Sets: five points from different starts, five posteriors, and a Markov chain that is restarted four times.

ensemble = ps.guides.Ensemble.of(model, size=5)
ps.fit(model, ensemble, data, epochs=1000, lr=3e-2, **settings)
show("Ensemble of 5 points", ensemble, "mc:5")

mixture = ps.guides.Ensemble.of(model, partial(ps.guides.Additive, init_scale=0.05), size=5)
ps.fit(model, mixture, data, epochs=1000, lr=3e-2, **settings)
show("Ensemble of 5 posteriors", mixture, "mc:300")

chain = ps.guides.Samples.chain(model, 100)
still = {name: value for name, value in settings.items() if name != "schedule"}
ps.fit(model, chain, data, epochs=2000, lr=2e-5, sampler=ps.SGHMC(cycles=4, explore=0.5), **still)
show("SGHMC, 4 cycles", chain, "mc:100")

# %%
# Twice the standard deviation of what the weights do not know, around the predictive mean. A point knows everything.
# Laplace's band and the chain's are narrow where there are data, and open in the gap and beyond. Independent weights,
# and the guides that start there, are less sure among the data, and too sure beyond. Five points hardly differ: with so
# few weights the prior leads all starts to nearly the same function.

figure, panels = plt.subplots(2, 5, figsize=(14, 5.6), sharex=True, sharey=True, layout="constrained")
line, truth = grid[:, 0].numpy(), torch.sin(2 * grid[:, 0]).numpy()
for axes, (title, band) in zip(panels.flat, bands.items(), strict=True):
    mean = band.mean[:, 0].numpy()
    spread = 2 * (band.variance[:, 0] - 0.1**2).clamp(min=0).sqrt().numpy()
    axes.fill_between(line, mean - spread, mean + spread, color="#0072B2", alpha=0.35)
    axes.plot(line, mean, color="#0072B2")
    axes.plot(line, truth, color="black", linestyle="--", linewidth=1)
    axes.scatter(x[:, 0].numpy(), y[:, 0].numpy(), s=6, color="black")
    axes.set(title=title, ylim=(-3, 3))
figure.suptitle("±2 standard deviations of the function; dashed: the truth")
plt.show()
