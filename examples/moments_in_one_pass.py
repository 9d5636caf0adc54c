"""Moments in one pass, with their certificate
===========================================

Every activation carries its mean and variance through the network: a prediction without draws. What it leaves out is
measured against Monte Carlo, layer by layer, with error bars.
"""

import torch
from matplotlib import pyplot as plt

import pyrostoch as ps

torch.manual_seed(0)
digits = ps.data.load("digits")
train, test = (digits.x_train, digits.y_train), (digits.x_test, digits.y_test)
net = ps.models.MLP(64, hidden=(50, 50), out_features=10)
model = ps.BayesianModel(
    net, prior=ps.priors.Normal(0.0, 0.5), likelihood=ps.likelihoods.Categorical(), num_data=len(digits.x_train)
)
guide = ps.guides.Additive(model, init_scale=0.05)
ps.fit(model, guide, train, epochs=30, lr=5e-3, seed=0, progress=False)

# %%
# Three readings of the same posterior.

print(ps.compare(model, guide, test, modes=("mean", "moments", "mc:100"), seed=0))

# %%
# The certificate: the error of mean and variance at each layer, against draws.

print(ps.moments_error(model, guide, digits.x_test[:100], seed=0))

# %%
# Image by image: the probability of the true class by one pass, beside many draws.

rows = torch.arange(len(digits.y_test))
one_pass, draws = (
    ps.predict(model, guide, digits.x_test, mode=mode, seed=0).probs[rows, digits.y_test]
    for mode in ("moments", "mc:500")
)
figure, axes = plt.subplots(figsize=(4.5, 4.2), layout="constrained")
axes.plot([0, 1], [0, 1], color="gray", linewidth=1)
axes.scatter(draws.numpy(), one_pass.numpy(), s=10, color="#0072B2")
axes.set(xlabel="500 draws", ylabel="moments, one pass", title="Probability of the true class")
plt.show()
