"""Three pictures
==============

A variance network by its mean and by averaging, a predictive band, and reliability: three readings of one library.
"""

import torch
from matplotlib import pyplot as plt
from torch import nn

import pyrostoch as ps

torch.manual_seed(0)
figure, ((by_mean, by_draws), (band_axes, reliability)) = plt.subplots(2, 2, figsize=(9, 7.4), layout="constrained")
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")

# sphinx_gallery_defer_figures

# %%
# Four classes in the plane. The middle layer's weights all have mean zero: what it knows is in their variances. With
# every weight at its mean one class is left; the average over draws knows all four.

centers = torch.tensor([[-1.5, -1.5], [-1.5, 1.5], [1.5, -1.5], [1.5, 1.5]])
y = torch.arange(4).repeat(100)
x = centers[y] + 0.5 * torch.randn(400, 2)
net = ps.models.MLP(2, hidden=(50, 50), out_features=4, batch_norm=True)
prior = {"fc2.weight": ps.priors.LogUniform()}
model = ps.BayesianModel(net, prior=prior, likelihood=ps.likelihoods.Categorical(), num_data=400)
guide = ps.guides.VarianceOnly(model)
ps.fit(model, guide, (x, y), epochs=150, batch_size=100, lr=1e-2, seed=0, progress=False)

side = torch.linspace(-3.5, 3.5, 121)
points = torch.cartesian_prod(side, side)
for axes, mode, title in ((by_mean, "mean", "mean weights"), (by_draws, "mc:100", "average of 100 draws")):
    winner = ps.predict(model, guide, points, mode=mode, seed=0).probs.argmax(1).reshape(121, 121)
    for label, color in enumerate(COLORS):
        axes.contourf(side, side, (winner == label).float().T, levels=(0.5, 1.5), colors=color, alpha=0.35)
        axes.scatter(*x[y == label].T, s=5, color=color)
    axes.set(title=f"A variance network: {title}", xticks=[], yticks=[])

# sphinx_gallery_defer_figures

# %%
# Regression with a gap in the data.

net = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 1))
x = torch.cat([torch.rand(40, 1) * 1.5 - 2.0, torch.rand(40, 1) * 1.5 + 0.5])
y = torch.sin(2 * x) + 0.1 * torch.randn_like(x)
model = ps.BayesianModel(net, prior={"*": ps.priors.Normal()}, likelihood=ps.likelihoods.Gaussian(0.1), num_data=80)
guide = ps.guides.Additive(model, init_scale=0.05)
ps.fit(model, guide, (x, y), epochs=1500, batch_size=80, lr=1e-2, num_particles=2, seed=0, progress=False)

line = torch.linspace(-3, 3, 200)[:, None]
band = ps.predict(model, guide, line, mode="mc:200", seed=0)
mean, sd = band.mean[:, 0], band.total[:, 0].sqrt()
band_axes.fill_between(line[:, 0], mean - 2 * sd, mean + 2 * sd, color="#56B4E9", alpha=0.35, label="±2 sd")
band_axes.plot(line[:, 0], mean, color="#0072B2", label="predictive mean")
band_axes.scatter(x[:, 0], y[:, 0], s=8, color="black", label="data")
band_axes.set(title="A predictive band", ylim=(-3, 3))
band_axes.legend(fontsize=8)

# sphinx_gallery_defer_figures

# %%
# Reliability on the bundled digits: how often a prediction of each confidence is right.

digits = ps.data.load("digits")
net = ps.models.MLP(64, hidden=(100,), out_features=10)
model = ps.BayesianModel(
    net, prior=ps.priors.Normal(), likelihood=ps.likelihoods.Categorical(), num_data=len(digits.x_train)
)
guide = ps.guides.Additive(model, init_scale=0.1)
ps.fit(model, guide, (digits.x_train, digits.y_train), epochs=40, lr=1e-2, seed=0, progress=False)
for mode, color in (("mean", "#D55E00"), ("mc:50", "#0072B2")):
    calibration = ps.metrics.Calibration(bins=8)
    calibration.update(ps.predict(model, guide, digits.x_test, mode=mode, seed=0).log_probs, digits.y_test)
    result = calibration.compute()
    reliability.plot(result.confidence, result.accuracy, "o-", color=color, label=f"{mode}, ECE {result.ece:.3f}")
reliability.plot([0, 1], [0, 1], color="gray", linewidth=1)
reliability.set(title="Reliability", xlabel="confidence", ylabel="accuracy")
reliability.legend(fontsize=8)
plt.show()
