"""Homeostasis: neurons that make up for noise
===========================================

Binary neurons whose noise grows fire at other rates, and the accuracy falls. A local rule without labels, a gain
and a bias for every neuron, brings the rates back.
"""

import torch
from matplotlib import pyplot as plt
from torch import nn

import pyrostoch as ps

torch.manual_seed(0)
digits = ps.data.load("digits")
train, test = (digits.x_train, digits.y_train), (digits.x_test, digits.y_test)
net = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 200), nn.BatchNorm1d(200), ps.layers.ThresholdNeuron(1.0), nn.Linear(200, 10)
)
model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=len(digits.x_train))
guide = ps.guides.Additive(model)  # no weight is random: the neurons are
ps.fit(model, guide, train, epochs=40, lr=5e-3, seed=0, estimator="moments:closed", progress=False)
_ = net.eval()

# %%
# Measure each neuron's rate at the noise it was trained with, then change the noise, with and without the rule.

homeostasis = ps.Homeostasis(net)
homeostasis.calibrate(digits.x_train)


def accuracy():
    return 100 * ps.compare(model, guide, test, modes=("mc:20",), seed=0).rows[0].accuracy


scales, without, adapted = (0.5, 1.0, 2.0, 4.0, 8.0), [], []
for scale in scales:
    with ps.noise_scaled(net, scale):
        without.append(accuracy())
        homeostasis.adapt(digits.x_train)
        adapted.append(accuracy())
        homeostasis.reset()

figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
axes.plot(scales, without, "o-", color="#D55E00", label="noise changed")
axes.plot(scales, adapted, "o-", color="#0072B2", label="and gains and biases adapted")
axes.set_xscale("log", base=2)
axes.set(xlabel="noise, relative to training", ylabel="test accuracy, %", title="20 draws")
axes.legend()
plt.show()
