"""Pruning, and what the means are worth
=====================================

A guide with an alpha for each weight: remove what is mostly noise; set all means to zero and see the difference.
The settings were chosen on a held-out fifth of the training images; the test images are used only for the final scores.
"""

import math
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from safetensors.torch import load_file, save_file

import pyrostoch as ps

digits = ps.data.load("digits")
train, test = (digits.x_train, digits.y_train), (digits.x_test, digits.y_test)


def plain_network() -> torch.nn.Module:
    return ps.models.MLP(64, hidden=(100, 100), out_features=10)


# 1. Without means. A layer with one alpha, N(mu, alpha mu^2). From a high initial value and with a large learning rate,
# alpha grows until the means no longer matter and the variances alone carry the information.
torch.manual_seed(0)
model = ps.BayesianModel(
    plain_network(),
    prior={"fc2.weight": ps.priors.LogUniform()},
    likelihood=ps.likelihoods.Categorical(),
    num_data=len(digits.x_train),
)
guide = ps.guides.LayerwiseAlpha(model, init_log_alpha=2.0)
ps.fit(model, guide, train, epochs=60, batch_size=100, lr=5e-3, lr_alpha=0.5, seed=0)
print(guide.zero_mean_gap(), end="\n\n")

variance_network = ps.guides.to_variance_only(guide)
for name, posterior in (("with means", guide), ("with all means zero", variance_network)):
    print(f"fc2 {name}")
    print(ps.compare(model, posterior, test, modes=("mc:1", "mc:20"), seed=0), end="\n\n")

# 2. Without most weights. Each weight has its own standard deviation, and the log-uniform prior favors noisy weights.
# The factor of the KL rises slowly from 0 to 1, so that the network fits the data first.
torch.manual_seed(0)
model = ps.BayesianModel(
    plain_network(), prior=ps.priors.LogUniform(), likelihood=ps.likelihoods.Categorical(), num_data=len(digits.x_train)
)
guide = ps.guides.Additive(model, init_scale=math.exp(-5))
ps.fit(model, guide, train, epochs=150, batch_size=100, lr=5e-3, kl_warmup=(10, 60), seed=0)
pruning = ps.guides.prune(guide)
print(pruning, end="\n\n")

# %%
# Weights that are mostly noise have a large alpha, the variance divided by the squared mean; pruning removes those with
# log alpha above 3.

figure, axes = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for site, color in zip(("fc1.weight", "fc2.weight", "fc3.weight"), ("#0072B2", "#E69F00", "#009E73"), strict=True):
    posterior = guide.site_distribution(site).base_dist
    log_alpha = (posterior.variance / posterior.mean.square()).log().detach().clamp(-6, 20)
    axes.hist(log_alpha.flatten().numpy(), bins=80, range=(-6, 20), histtype="step", color=color, label=site)
axes.axvline(3, color="black", linestyle="--", label="threshold")
axes.set(
    xlabel="log alpha", ylabel="weights", yscale="log", title=f"{pruning.kept} of {pruning.weights} weights are kept"
)
axes.legend(fontsize=8)
plt.show()

# %%
# The exported network is an ordinary one, with sparse layers where that takes less memory.


def accuracy(net: torch.nn.Module) -> float:
    with torch.no_grad():
        return (net(test[0]).argmax(-1) == test[1]).double().mean().item()


def size(net: torch.nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in net.state_dict().values())


# For comparison, a threshold that removes nothing: the network with every weight at its mean.
means = ps.guides.prune(guide, threshold=100).export(model, dense=True)
exported = pruning.export(model)
print(f"before pruning: accuracy {accuracy(means):.2%}, {size(means)} bytes")
print(f"pruned:         accuracy {accuracy(exported):.2%}, {size(exported)} bytes")

Path("runs").mkdir(exist_ok=True)
save_file(exported.state_dict(), "runs/pruned.safetensors")
loaded = ps.guides.load_pruned(plain_network(), load_file("runs/pruned.safetensors"))
same = torch.equal(loaded(test[0]), exported(test[0]))
print(f"loaded again:   accuracy {accuracy(loaded):.2%}, the same outputs: {same}")
