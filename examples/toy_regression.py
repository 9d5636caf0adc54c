"""Regression with a band
======================

One dimension, a gap in the data: what the weights do not know (epistemic), and the noise besides (total).
"""

import torch
from matplotlib import pyplot as plt

import pyrostoch as ps

torch.manual_seed(0)
x = torch.cat([torch.rand(40, 1) * 1.5 - 2.0, torch.rand(40, 1) * 1.5 + 0.5])  # a gap in the middle
y = torch.sin(2 * x) + 0.1 * torch.randn_like(x)

net = torch.nn.Sequential(torch.nn.Linear(1, 50), torch.nn.Tanh(), torch.nn.Linear(50, 1))
model = ps.BayesianModel(
    net,
    prior={"*": ps.priors.Normal(0.0, 1.0)},  # the pattern matches the biases, too
    likelihood=ps.likelihoods.Gaussian(0.1),
    num_data=len(x),
)
guide = ps.guides.Additive(model, init_scale=0.05)
ps.fit(model, guide, (x, y), epochs=2000, batch_size=80, lr=1e-2, num_particles=2, seed=0)
print(ps.decompose(model, guide, (x, y), num_samples=50))

# %%
# Predictions between and beyond the data. Twice the standard deviation: dark for what the weights do not know, light
# with the noise of the observations. A mean-field posterior is too narrow in the gap; NUTS would be wider there.

grid = torch.linspace(-3, 3, 300)[:, None]
band = ps.predict(model, guide, grid, mode="mc:500")
mean, total, epistemic = (t[:, 0].numpy() for t in (band.mean, band.total.sqrt(), band.epistemic.sqrt()))

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
line = grid[:, 0].numpy()
axes.fill_between(line, mean - 2 * total, mean + 2 * total, color="#56B4E9", alpha=0.3, label="±2 sd, total")
axes.fill_between(
    line, mean - 2 * epistemic, mean + 2 * epistemic, color="#0072B2", alpha=0.4, label="±2 sd, epistemic"
)
axes.plot(line, mean, color="#0072B2", label="predictive mean")
axes.plot(line, torch.sin(2 * grid[:, 0]).numpy(), color="black", linestyle="--", linewidth=1, label="truth")
axes.scatter(x[:, 0].numpy(), y[:, 0].numpy(), s=10, color="black", label="data")
axes.set(xlabel="x", ylabel="y", ylim=(-3, 3), title="Mean-field Bayesian network, 500 draws")
axes.legend(loc="upper center", ncols=3, fontsize=8)
plt.show()
