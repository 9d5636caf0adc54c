"""A variance network: a layer whose weights all have mean zero, so that whatever it knows is in their spread.

Run it as it is for the bundled digits (seconds), with `--data mnist` for LeNet5 on MNIST (minutes; PYROSTOCH_DATA names
the folder of the files), and with `--toy figure.png` for the picture of the toy problem.
"""

import argparse

import torch

import pyrostoch as ps

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
parser.add_argument("--epochs", type=int, help="passes through the training data, if not the usual number")
parser.add_argument("--toy", metavar="FILE", help="train the toy problem instead, and save its picture here")
parser.add_argument("--preset", choices=("quick", "cpu", "full"), default="cpu", help="of the toy problem")
options = parser.parse_args()

if options.toy:
    # The benchmarks and their figures are rooms of their own: they are imported where they are wanted.
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

# Any network will do. The variance layer is one before the last: a logit whose distribution is symmetric about zero
# favors no class, so the layer behind it has to read the spread.
if options.data == "digits":
    net, layer = ps.models.MLP(64, hidden=(100, 100), out_features=10, batch_norm=True), "fc2.weight"
    epochs, batch_size, lr = 60, 100, 5e-3
else:
    net, layer = ps.models.LeNet5(), "dense1.weight"
    epochs, batch_size, lr = 15, 200, 2e-3

# The named weight is random, everything else an ordinary parameter. Under the log-uniform prior the KL of a
# distribution of mean zero is constant, whatever its spread; it is counted as zero.
model = ps.BayesianModel(
    net,
    prior={layer: ps.priors.LogUniform()},
    likelihood=ps.likelihoods.Categorical(),
    num_data=len(split.x_train),
)

# The variance layer: N(0, sigma^2) for each weight. family="bernoulli" draws -sigma or sigma, "uniform" in between.
guide = ps.guides.VarianceOnly(model, family="gaussian")
run = ps.fit(
    model,
    guide,
    train,
    epochs=epochs if options.epochs is None else options.epochs,
    batch_size=batch_size,
    lr=lr,
    seed=0,
)
print(run, end="\n\n")

# The mean of every weight of the layer is zero, so the mean network gives all images the same answer; a draw gives a
# good one, and an average over draws a better one.
print(ps.compare(model, guide, test, modes=("mean", "mc:1", "mc:20"), seed=0), end="\n\n")

# Where the ELBO comes from, in nats over the whole training set.
print(ps.decompose(model, guide, train, num_samples=5))
