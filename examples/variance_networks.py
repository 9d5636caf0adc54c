"""A variance network
==================

All weights of a layer have mean zero, so that it stores information only in their variances.

Run it without arguments for the bundled digits (seconds), with ``--data mnist`` for LeNet5 on MNIST (minutes; the
environment variable PYROSTOCH_DATA is the folder of the files), or with ``--toy figure.png`` for the toy problem.
"""

import argparse

import torch
from matplotlib import pyplot as plt

import pyrostoch as ps

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
parser.add_argument("--epochs", type=int, help="passes through the training data, instead of the default number")
parser.add_argument("--toy", metavar="FILE", help="train on the toy problem instead, and save its figure to this file")
parser.add_argument("--preset", choices=("quick", "cpu", "full"), default="cpu", help="of the toy problem")
options = parser.parse_args()

if options.toy:
    # The benchmarks and their figures are not part of the main package, and are imported only here.
    from pyrostoch.bench.published import toy
    from pyrostoch.report import figures

    result = toy.train(options.preset, seed=0, progress=True)
    print(result)
    figures.toy(result).savefig(options.toy, dpi=150)
    print(f"wrote {options.toy}")
    raise SystemExit

split = ps.data.load(options.data)
train, test = (split.x_train, split.y_train), (split.x_test, split.y_test)
torch.manual_seed(0)

# Any network can be used. The variance layer must not be the last one: logits that are symmetric about zero favor no
# class, so a later layer has to turn the variance of the activations into a mean.
if options.data == "digits":
    net, layer = ps.models.MLP(64, hidden=(100, 100), out_features=10, batch_norm=True), "fc2.weight"
    epochs, batch_size, lr = 60, 100, 5e-3
else:
    net, layer = ps.models.LeNet5(), "dense1.weight"
    epochs, batch_size, lr = 15, 200, 2e-3

# The named weight is random, all others are ordinary parameters. Under the log-uniform prior, the KL of a distribution
# with mean zero does not depend on its variance; it is counted as zero.
model = ps.BayesianModel(
    net,
    prior={layer: ps.priors.LogUniform()},
    likelihood=ps.likelihoods.Categorical(),
    num_data=len(split.x_train),
)

# N(0, sigma^2) for each weight. family="bernoulli" draws -sigma or sigma, family="uniform" draws from an interval.
guide = ps.guides.VarianceOnly(model, family="gaussian")
result = ps.fit(
    model,
    guide,
    train,
    epochs=epochs if options.epochs is None else options.epochs,
    batch_size=batch_size,
    lr=lr,
    seed=0,
)
print(result, end="\n\n")

# With every weight at its mean, zero, the layer ignores its input, and the network predicts the same class for all
# images. A single draw predicts well, and the average over draws predicts better.
scores = ps.compare(model, guide, test, modes=("mean", "mc:1", "mc:20"), seed=0)
print(scores, end="\n\n")

# The terms of the ELBO, in nats for the whole training set.
print(ps.decompose(model, guide, train, num_samples=5))

# %%
# What the layer has learned is in the standard deviations; not in the means. Averages read it better than one draw.

by_samples = ps.prediction.accuracy_by_samples(model, guide, test, samples=(1, 2, 5, 10, 20, 50), seed=0).rows
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
deviations = guide.site_distribution(layer).base_dist.stddev.detach().flatten()
left.hist(deviations.numpy(), bins=60, color="#0072B2")
left.set(xlabel="standard deviation of a weight", ylabel="weights", yscale="log", title=f"{layer}: all means are zero")
counts, accuracies = [int(row.mode.split(":")[1]) for row in by_samples], [100 * row.accuracy for row in by_samples]
right.plot(counts, accuracies, "o-", color="#0072B2", label="average of draws")
right.axhline(100 * scores["mean"].accuracy, color="#D55E00", linestyle="--", label="weights at their mean")
right.set(xscale="log", xlabel="draws", ylabel="test accuracy, %", title="Reading a variance network")
right.legend(fontsize=8)
plt.show()
