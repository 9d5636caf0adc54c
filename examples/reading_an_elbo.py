"""Reading an ELBO
===============

The ELBO is the data term minus the KL of every site, in nats for the whole training set. The decomposition tells what
is learned where, and how far training has come.
"""

import math

import torch
from matplotlib import pyplot as plt

import pyrostoch as ps

torch.manual_seed(0)
digits = ps.data.load("digits")
train = (digits.x_train, digits.y_train)
net = ps.models.MLP(64, hidden=(30, 30), out_features=10)
model = ps.BayesianModel(
    net, prior=ps.priors.Normal(0.0, 0.3), likelihood=ps.likelihoods.Categorical(), num_data=len(digits.x_train)
)
guide = ps.guides.Additive(model, init_scale=0.02)
result = ps.fit(model, guide, train, epochs=60, lr=5e-3, seed=0, progress=False)

# %%
# Both terms move at different rates: the data are explained within a few epochs, while the KL, large at first since the
# guide starts narrow, goes on falling. A data term that looks fine beside a falling KL means that training is not over.

history = result.history
figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
for name, color in (("elbo", "black"), ("data", "#0072B2"), ("kl", "#D55E00")):
    sign = -1 if name == "kl" else 1
    axes.plot(
        history["epoch"], [sign * value for value in history[name]], color=color, label=f"{'-' * (sign < 0)}{name}"
    )
axes.set(xlabel="epoch", ylabel="nats", title="ELBO = data term - KL")
axes.legend()
plt.show()

# %%
# Site by site: nats for a weight say how much each has been moved from its prior, whatever the size of the tensor.

terms = ps.decompose(model, guide, train, num_samples=20)
print(terms)
names = [site.site for site in terms.sites]
sizes = [model.sites[name].init.numel() for name in names]
figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
axes.bar(names, [site.kl / size for site, size in zip(terms.sites, sizes, strict=True)], color="#D55E00")
axes.set(ylabel="KL, nats a weight", title="What each layer has learned")
plt.show()

# %%
# The last number to look at is the ELBO itself: under a proper prior it bounds the log evidence from below, and may be
# compared between models of the same data. A model that learns nothing is the yardstick: with probabilities of one
# tenth for every image, its ELBO is -N log 10.
#
# `fit` prints the ELBO of its own estimator, "local"; `decompose` uses "marginal", which draws convolutions exactly.

print(f"ELBO {terms.elbo:.1f} nats, {terms.elbo / len(digits.x_train):.3f} an image")
print(f"guessing: {-len(digits.x_train) * math.log(10):.1f} nats, {-math.log(10):.3f} an image")
