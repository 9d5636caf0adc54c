"""What a trained posterior can do without: its means, or most of its weights.

The settings were chosen on a fifth of the training images, held out; the test images are only looked at here.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import pyrostoch as ps

digits = ps.data.load("digits")
train, test = (digits.x_train, digits.y_train), (digits.x_test, digits.y_test)


def plain_network() -> torch.nn.Module:
    return ps.models.MLP(64, hidden=(100, 100), out_features=10)


# 1. Without means. A layer with one alpha, N(mu, alpha mu^2): started high and given a quick learning rate of its own,
# alpha grows until the spread is all that counts.
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
for name, posterior in (("with its means", guide), ("all means zero", variance_network)):
    print(f"fc2 {name}")
    print(ps.compare(model, posterior, test, modes=("mc:1", "mc:20"), seed=0), end="\n\n")

# 2. Without most weights. Every weight has a spread of its own, and the log-uniform prior rewards noise; its KL comes
# in slowly, so that the network learns something first.
torch.manual_seed(0)
model = ps.BayesianModel(
    plain_network(), prior=ps.priors.LogUniform(), likelihood=ps.likelihoods.Categorical(), num_data=len(digits.x_train)
)
guide = ps.guides.Additive(model, init_scale=math.exp(-5))
ps.fit(model, guide, train, epochs=150, batch_size=100, lr=5e-3, kl_warmup=(10, 60), seed=0)
pruning = ps.guides.prune(guide)
print(pruning, end="\n\n")


def accuracy(net: torch.nn.Module) -> float:
    with torch.no_grad():
        return (net(test[0]).argmax(-1) == test[1]).double().mean().item()


def size(net: torch.nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in net.state_dict().values())


# A threshold that removes nothing: the network of all means, to compare with.
means = ps.guides.prune(guide, threshold=100).export(model, dense=True)
exported = pruning.export(model)
print(f"before pruning: accuracy {accuracy(means):.2%}, {size(means)} bytes")
print(f"pruned:         accuracy {accuracy(exported):.2%}, {size(exported)} bytes")

Path("runs").mkdir(exist_ok=True)
save_file(exported.state_dict(), "runs/pruned.safetensors")
loaded = ps.guides.load_pruned(plain_network(), load_file("runs/pruned.safetensors"))
same = torch.equal(loaded(test[0]), exported(test[0]))
print(f"loaded again:   accuracy {accuracy(loaded):.2%}, the same outputs: {same}")
