"""What noise hides, and what asking again brings back
====================================================

A client sends digits under noise, so that somebody else can tell whether a digit is greater than four. The noise was
learned with the network: as large as that task allows. Does it hide which digit it is, or what it looks like? Attackers
that know the client and its noise find out.

Run it without arguments (about a minute).
"""

import torch
from matplotlib import pyplot as plt
from torch import nn

import pyrostoch as ps
from pyrostoch.obfuscate import Client, audit
from pyrostoch.report import audit_pictures

torch.manual_seed(0)
data = ps.data.load("digits")
x, x_test = data.x_train, data.x_test
task, task_test = (data.y_train > 4).long(), (data.y_test > 4).long()

# %%
# Noise of its own size and mean for each pixel, in front of a small network. ``noise_weight`` enlarges it where the
# task allows.

net = nn.Sequential(
    ps.layers.StochasticAdditive((1, 8, 8), scale=0.4),
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(256, 64),
    nn.ReLU(),
    nn.Linear(64, 2),
)
model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=len(x))
guide = ps.guides.Additive(model)  # no weight is random here
ps.fit(
    model, guide, (x, task), epochs=20, lr=3e-3, noise_weight=0.1, batch_size=50, seed=0, progress=False, compile=False
)
print(ps.activation_noise(model, guide, (x, task)))

# %%
# The client sends what the first layer draws. The audit checks that nothing else leaves it, trains attackers on fresh
# draws for one query of each digit and for the mean of a hundred, and puts beside them what the answer alone tells.
# An attacker that more training would help without noise may read still more than what the table says.

client = Client(model, guide, at="0")
found = audit(
    client,
    (x, task),
    (x_test, task_test),
    private={"digit": (data.y_train, data.y_test)},
    queries=(1, 100),
    epochs=3,
    most_epochs=40,
    inverted=50,
    steps=30,
)
print(found)

# %%
# Pictures: some digits, what was sent of them, and what attackers take for the originals. A network that has learned to
# reconstruct, and a search for the most probable digits given what was sent and what digits look like, see through much
# of the noise of one query. Fresh noise for every query averages out.

audit_pictures(found, plt.figure())
plt.show()

# %%
# From one query of each digit its attackers tell most of the digits, though the noise was almost twice the signal, and
# after a hundred queries they see them: noise that a task can bear is no privacy by itself.
