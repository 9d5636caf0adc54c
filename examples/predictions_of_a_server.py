"""Predictions of a server
=======================

A `Predictor` settles once what does not depend on the inputs. Here is what a call costs, beside `predict` and beside
the plain network, by the number of examples.
"""

import time

import torch
from matplotlib import pyplot as plt

import pyrostoch as ps

torch.manual_seed(0)
digits = ps.data.load("digits")
net = ps.models.MLP(64, hidden=(200, 200), out_features=10)
model = ps.BayesianModel(
    net, prior=ps.priors.Normal(0.0, 0.5), likelihood=ps.likelihoods.Categorical(), num_data=len(digits.x_train)
)
guide = ps.guides.Additive(model, init_scale=0.05)
ps.fit(model, guide, (digits.x_train, digits.y_train), epochs=20, lr=5e-3, seed=0, progress=False)

# %%
# One predictor for moments, one that averages over 20 fixed draws.

counts = (1, 4, 16, 64, 256)
example = digits.x_test[:16]
moments = ps.Predictor(model, guide, mode="moments", example=example)
draws = ps.Predictor(model, guide, mode="mc:20", draws="fixed", seed=0, example=example)
print("a graph:", moments.reason is None and draws.reason is None)


def plain(x):
    with torch.no_grad():
        return net(x)


calls = {
    "plain network": plain,
    "predictor, moments": moments,
    "predictor, 20 fixed draws": draws,
    "predict, moments": lambda x: ps.predict(model, guide, x, mode="moments"),
    "predict, 20 draws": lambda x: ps.predict(model, guide, x, mode="mc:20", seed=0),
}

# %%
# The median of 15 calls.


def milliseconds(call, x):
    times = []
    for _ in range(18):
        start = time.perf_counter()
        call(x)
        times.append(time.perf_counter() - start)
    return 1e3 * sorted(times[3:])[7]


net.eval()
spent = {name: [milliseconds(call, digits.x_test[:count]) for count in counts] for name, call in calls.items()}
for name, row in spent.items():
    print(f"{name:<28}", "  ".join(f"{value:7.2f}" for value in row))

# %%
# The distance between the lines of a mode is what `predict` spends on looking at the network.

colors = {"plain": "gray", "moments": "#0072B2", "draws": "#D55E00"}
figure, axes = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
for name, row in spent.items():
    color = next(color for key, color in colors.items() if key in name)
    axes.plot(counts, row, marker="o", color=color, linestyle="--" if name.startswith("predict,") else "-", label=name)
axes.set(xscale="log", yscale="log", xlabel="examples", ylabel="milliseconds a call", title="What a prediction costs")
axes.legend(fontsize=8)
plt.show()
