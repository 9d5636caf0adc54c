"""Intervals from a table
======================

A CSV file of houses, with a city by name, sizes that are missing, and prices that spread more where houses are large,
is read as a data set. Two networks are trained on it: one with the same noise everywhere, one whose noise depends on
the house. Both give intervals; which of them hold what they promise?

Run it without arguments (under a minute).
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt

import pyrostoch as ps

generator = np.random.default_rng(0)
count = 4000
rooms, city = generator.integers(1, 9, count), generator.choice(["Berlin", "Paris", "Rome"], count)
area = 20 * rooms + generator.uniform(5, 40, count)
price = 50 + 20 * rooms + 1.5 * area + 60 * (city == "Paris") + 0.25 * area * generator.normal(size=count)
sizes = [f"{a:.1f}" if known else "" for a, known in zip(area, generator.random(count) > 0.1, strict=True)]
lines = [f"{r},{a},{c},{p:.1f}" for r, a, c, p in zip(rooms, sizes, city, price, strict=True)]

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "houses.csv"
    path.write_text("\n".join(["rooms,area,city,price", *lines]))
    table = ps.data.load_table(path, "price", test=0.5)
split, schema = table.split, table.schema
print(split)
print("inputs:", ", ".join(schema.entries))

# %%
# Numbers are standardized, the city has an entry for each name, and one more entry says where the area is missing.

train, test = (split.x_train, split.y_train), (split.x_test, split.y_test)
likelihoods = {
    "same noise": (ps.likelihoods.Gaussian(0.3, learn=True), 1),
    "noise by the house": (ps.likelihoods.HeteroscedasticGaussian(), 2),
}
predictions = {}
for name, (likelihood, outputs) in likelihoods.items():
    torch.manual_seed(0)
    net = ps.models.MLP(len(schema.entries), (20,), outputs, activation="tanh")
    model = ps.BayesianModel(net, prior=ps.priors.Normal(), likelihood=likelihood, num_data=len(train[0]))
    guide = ps.guides.Additive(model, init_scale=0.05)
    ps.fit(model, guide, train, epochs=60, lr=1e-2, seed=0, progress=False, compile=False)
    print(f"--- {name}")
    print(ps.compare(model, guide, test, modes=("mc:20",), seed=0))
    predictions[name] = ps.predict(model, guide, test[0], seed=0)

# %%
# The share of held-out prices in intervals of 90 %, for small and for large houses: with the same noise everywhere the
# intervals of small houses are too wide, those of large ones too narrow.

truth = split.y_test[:, 0]
order = torch.as_tensor(split.x_test[:, 0])  # standardized rooms
groups = {"small": order < order.median(), "large": order >= order.median()}
inside = {}
for name, found in predictions.items():
    mean, deviation = found.mean[:, 0], found.variance[:, 0].sqrt()
    inside[name] = (truth - mean).abs() < 1.645 * deviation
    shares = ", ".join(f"{group} {100 * inside[name][rows].float().mean():.0f} %" for group, rows in groups.items())
    print(f"{name}: all {100 * inside[name].float().mean():.0f} %, {shares}")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
scale, shift = schema.target_std, schema.target_mean
some = truth.argsort()[:: len(truth) // 80]
for axis, (name, found) in zip(axes, predictions.items(), strict=True):
    mean, deviation = (part[some, 0] for part in (found.mean, found.variance.sqrt()))
    values = (truth[some] * scale + shift).numpy()
    axis.errorbar(
        values, (mean * scale + shift).numpy(), (1.645 * deviation * scale).numpy(), fmt=".", lw=0.8, ms=3, color="C0"
    )
    axis.plot([values.min(), values.max()], [values.min(), values.max()], color="0.5", lw=0.8)
    axis.set_title(f"{name}: {100 * inside[name].float().mean():.0f} % inside")
    axis.set_xlabel("price")
axes[0].set_ylabel("predicted, interval of 90 %")
plt.show()
