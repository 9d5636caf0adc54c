"""An information bottleneck
=========================

How many nats of an image does a classifier need? A stochastic layer with a prior lets through no more information than
its rate, and the weight of the rate in the loss sets how many nats that is.

Run it without arguments for the bundled digits (under a minute), or with ``--data mnist`` (some ten minutes for each
point; the environment variable PYROSTOCH_DATA is the folder of the files).
"""

import argparse

import torch
from matplotlib import pyplot as plt
from torch import nn

import pyrostoch as ps

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
parser.add_argument("--epochs", type=int, help="passes through the training data, instead of the default number")
options = parser.parse_args()

split = ps.data.load(options.data)
train, test = (split.x_train, split.y_train), (split.x_test, split.y_test)
inputs = split.x_train[0].numel()
if options.data == "digits":
    hidden, units, epochs, weights = 64, 16, 30, (1e-3, 1e-2, 0.1, 0.3, 0.6)
else:
    hidden, units, epochs, weights = 1024, 256, 60, (1e-3, 1e-2, 0.1)
epochs = options.epochs or epochs


def bottleneck(rate_weight):
    """Train a network with a bottleneck; return the model, its guide and the scores on test data."""
    torch.manual_seed(0)
    layer = ps.layers.StochasticLinear(hidden, units, prior="standard")
    with torch.no_grad():
        layer.kernel.bias[units:] -= 3.0  # start with little noise
    augment = [ps.models.CropAndFlip(2, flip=False)] if options.data == "mnist" else []
    net = nn.Sequential(
        *augment, nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
        layer, nn.Linear(units, 10),
    )  # fmt: skip
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=len(train[0]))
    guide = ps.guides.Amortised(model)
    ps.fit(
        model, guide, train, epochs=epochs, lr=2e-3, schedule="cosine", rate_weight=rate_weight, seed=0, progress=False
    )
    return model, guide, ps.compare(model, guide, test, modes=("mc:20",), seed=0)


# %%
# The rate, KL(q(h | x) || p(h)), is an upper bound of the information that the bottleneck has of an image. Since every
# path from the image to the output crosses it, so it is of the output's. `decompose` shows that by putting the draws
# back: other images then leave the output as it was.

rates, errors = [], []
for rate_weight in weights:
    model, guide, scores = bottleneck(rate_weight)
    terms = ps.decompose(model, guide, train)
    rates.append(terms.rates[0].nats)
    errors.append(100.0 - 100.0 * scores.rows[0].accuracy)
    print(f"rate weight {rate_weight:g}: {rates[-1]:.2f} nats an image, error {errors[-1]:.2f} %")

print(terms)

# %%
# The class of an image has at most log 10 = 2.30 nats. The fewer nats, the higher the error,
# and with less than those of the class most images are lost.

figure, axes = plt.subplots(figsize=(6.0, 3.6), layout="constrained")
axes.plot(rates, errors, "o-")
for rate, error, rate_weight in zip(rates, errors, weights, strict=True):
    axes.annotate(f"{rate_weight:g}", (rate, error), textcoords="offset points", xytext=(5, 5))
axes.margins(x=0.12, y=0.1)
axes.axvline(2.303, color="gray", linestyle=":")
axes.set(
    xscale="log",
    xlabel="rate, nats an image",
    ylabel="test error, %",
    title="Error against rate, by weight of the rate",
)
plt.show()
