"""The nodes of a graph
====================

Labels for some nodes; batches of nodes, while features and edges stay whole.
"""

import torch
from matplotlib import pyplot as plt
from torch import nn

import pyrostoch as ps

torch.manual_seed(0)
NODES, LABELED = 300, 40


class GraphNetwork(nn.Module):
    """Two graph convolutions; returns the logits of the nodes that it is asked for."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, features, edges, nodes):
        hidden = torch.relu(self.mean_of_neighbors(self.first(features), edges))
        return self.mean_of_neighbors(self.second(hidden), edges)[nodes]

    def mean_of_neighbors(self, x, edges):
        source, target = edges
        degree = torch.zeros(len(x), 1).index_add(0, target, torch.ones(len(target), 1))
        return torch.zeros_like(x).index_add(0, target, x[source]) / degree


# Two communities: nodes know little of their class, their neighbors more.
y = torch.randint(2, (NODES,))
probability = torch.where(y[:, None] == y[None, :], 0.04, 0.01)
edges = ((torch.rand(NODES, NODES) < probability) | torch.eye(NODES, dtype=torch.bool)).nonzero().T
features = torch.randn(NODES, 8) + 0.3 * (2.0 * y[:, None] - 1.0)
order = torch.randperm(NODES)
labeled, others = order[:LABELED], order[LABELED:]

# Features and edges belong to all examples and are handed over whole; the examples are the nodes with labels.
model = ps.BayesianModel(
    GraphNetwork(),
    prior=ps.priors.Normal(),
    likelihood=ps.likelihoods.Categorical(),
    num_data=LABELED,
    in_dims=(None, None, 0),
)
guide = ps.guides.Additive(model)
train, test = ((features, edges, labeled), y[labeled]), ((features, edges, others), y[others])
ps.fit(model, guide, train, epochs=150, batch_size=LABELED, lr=2e-2, seed=0, progress=False)
print(ps.decompose(model, guide, train, num_samples=10))
print(ps.compare(model, guide, test, modes=("mean", "mc:50"), seed=0))

# %%
# A node's own features say little, and its neighbors' more. The network is unsure where both are between the classes.

prediction = ps.predict(model, guide, test[0], mode="mc:50", seed=0)
own, neighbors = features.mean(1), model.net.mean_of_neighbors(features, edges).mean(1)
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
points = axes.scatter(own[others], neighbors[others], c=prediction.probs[:, 1], cmap="coolwarm", vmin=0, vmax=1, s=16)
axes.scatter(own[labeled], neighbors[labeled], c=y[labeled], cmap="coolwarm", marker="s", edgecolors="black", s=30)
axes.set(xlabel="mean of a node's features", ylabel="mean of its neighbors' features", title="Squares have labels")
figure.colorbar(points, label="probability of class 1")
plt.show()
