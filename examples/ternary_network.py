"""A ternary network
=================

Neurons with the states -1, 0 and 1, drawn with noise around two thresholds: the derivative of the expected state trains
them, and averaging over draws reads them.
"""

import torch
from matplotlib import pyplot as plt
from torch import nn

import pyrostoch as ps

torch.manual_seed(0)
neuron = ps.layers.Ternary()
x = torch.linspace(-4, 4, 200)
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for state, curve, color in zip((-1, 0, 1), neuron.probabilities(x).T, ("#D55E00", "#999999", "#0072B2"), strict=True):
    axes.plot(x.numpy(), curve.detach().numpy(), color=color, label=f"P(state {state})")
axes.plot(x.numpy(), neuron.expected(x).detach().numpy(), color="black", linestyle="--", label="expected state")
axes.set(xlabel="input", title="A neuron of three states")
axes.legend(fontsize=8)
plt.show()

# %%
# A network of such neurons, on the bundled digits.

digits = ps.data.load("digits")
train, test = (digits.x_train, digits.y_train), (digits.x_test, digits.y_test)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 200), nn.BatchNorm1d(200), ps.layers.Ternary(), nn.Linear(200, 10))
model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=len(digits.x_train))
guide = ps.guides.Additive(model)  # no weight is random here: the neurons are
ps.fit(model, guide, train, epochs=30, lr=5e-3, seed=0, progress=False)

# %%
# One draw is a network of integers. Its expectation, hard thresholds without noise, and averages are other readings.

print(ps.compare(model, guide, test, modes=("noise-free", "mean", "mc:1", "mc:20"), seed=0))
