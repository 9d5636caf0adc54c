"""Which digit, and how far it is turned
=====================================

Digits are turned by up to 60 degrees. One network tells which digit it is and by what angle it was turned: two heads
with a likelihood each, under one posterior. The second head also says how sure it is of the angle.

Run it without arguments (about a minute).
"""

import torch
from matplotlib import pyplot as plt
from torch import nn
from torch.nn import functional as F

import pyrostoch as ps
from pyrostoch.likelihoods import Categorical, HeteroscedasticGaussian, Joint

torch.manual_seed(0)
data = ps.data.load("digits")


def turned(images, angles):
    """Images, turned by angles in radians."""
    zeros = torch.zeros_like(angles)
    rows = torch.stack([angles.cos(), -angles.sin(), zeros, angles.sin(), angles.cos(), zeros], 1)
    grid = F.affine_grid(rows.reshape(-1, 2, 3), images.shape, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def examples(images, labels, times):
    """Each image several times, turned anew, with its label and the angle, in units of 60 degrees."""
    images, labels = images.repeat(times, 1, 1, 1), labels.repeat(times)
    share = 2.0 * torch.rand(len(images)) - 1.0
    return turned(images, share * torch.pi / 3).flatten(1), {"digit": labels, "angle": share[:, None]}


train, test = examples(data.x_train, data.y_train, 4), examples(data.x_test, data.y_test, 4)


class TwoHeads(nn.Module):
    """A body with a head for each question; a part of the output has the name of its head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 60), nn.ReLU())
        self.digit, self.angle = nn.Linear(60, 10), nn.Linear(60, 2)

    def forward(self, x):
        features = self.body(x)
        return {"digit": self.digit(features), "angle": self.angle(features)}


# %%
# The likelihood has a head for each question; the targets are a dictionary with the same names.

likelihood = Joint({"digit": Categorical(), "angle": HeteroscedasticGaussian()})
model = ps.BayesianModel(TwoHeads(), prior=ps.priors.Normal(0, 0.3), likelihood=likelihood, num_data=len(train[0]))
guide = ps.guides.Additive(model, init_scale=0.02)
ps.fit(model, guide, train, epochs=30, lr=5e-3, seed=0, progress=False, compile=False)

# %%
# The ELBO's data term is the sum of those of the heads, and each head has its scores. The first table is about both at
# once: the density of digit and angle under the same draws of the weights.

print(ps.decompose(model, guide, train, num_samples=2))
print(ps.compare(model, guide, test, modes=("mean", "mc:20"), seed=0))

# %%
# The angle is told within a few degrees. The standard deviations that the network claims are somewhat larger than the
# errors that it makes, but for the 4, which is the hardest to place.

found = ps.predict(model, guide, test[0], mode="mc:20", seed=0)
angle = found.heads["angle"]
deviation, error = 60 * angle.variance[:, 0].sqrt(), 60 * (angle.mean - test[1]["angle"])[:, 0]
digits = test[1]["digit"]
claimed = torch.tensor([deviation[digits == digit].mean() for digit in range(10)])
made = torch.tensor([error[digits == digit].square().mean().sqrt() for digit in range(10)])
for digit in range(10):
    print(f"{digit}: standard deviation {claimed[digit]:.1f}, error {made[digit]:.1f} degrees")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
places = torch.arange(10)
axes[0].bar(places - 0.2, claimed, 0.4, label="predicted standard deviation")
axes[0].bar(places + 0.2, made, 0.4, label="root mean squared error")
axes[0].set_xticks(places.tolist())
axes[0].set_xlabel("digit")
axes[0].set_ylabel("degrees")
axes[0].set_ylim(0, 8)
axes[0].legend(frameon=False)
shown = [int((digits == digit).nonzero()[0]) for digit in (0, 4, 7)]
axes[1].imshow(torch.cat([test[0][row].reshape(8, 8) for row in shown], 1), cmap="gray_r")
axes[1].set_axis_off()
texts = [f"{60 * angle.mean[k, 0]:.0f}° ± {deviation[k]:.0f}° ({60 * test[1]['angle'][k, 0]:.0f}°)" for k in shown]
axes[1].set_title("predicted (true):  " + ",  ".join(texts), fontsize=9)
plt.show()
