"""A loop of your own
==================

The same by hand, with ``pyro.infer.SVI``: everything stays an ordinary Pyro program.
"""

import pyro
import torch
from matplotlib import pyplot as plt

import pyrostoch as ps

pyro.set_rng_seed(0)
digits = ps.data.load("digits")
net = ps.models.MLP(64, hidden=(100, 100), out_features=10)
model = ps.BayesianModel(
    net,
    prior={"fc2.weight": ps.priors.LogUniform()},  # the rest is fitted by maximum likelihood
    likelihood=ps.likelihoods.Categorical(),
    num_data=len(digits.x_train),
)
guide = ps.guides.LayerwiseAlpha(model, init_log_alpha=-2.0)
svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), ps.ELBO(estimator="local"))

elbos = []
for epoch in range(1, 31):
    loss = 0.0
    for batch in torch.randperm(len(digits.x_train)).split(100):
        fraction = len(batch) / len(digits.x_train)
        loss += fraction * float(svi.step(digits.x_train[batch], digits.y_train[batch]))
    elbos.append(-loss)
    if epoch % 10 == 0:
        print(f"epoch {epoch}: ELBO {-loss:.1f} nats")

train, test = (digits.x_train, digits.y_train), (digits.x_test, digits.y_test)
print(ps.decompose(model, guide, train, num_samples=5))
print(ps.compare(model, guide, test, modes=("mean", "mc:1", "mc:20")))

# %%
# The ELBO of each epoch, estimated from one draw for each batch.

figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.plot(range(1, 31), elbos, color="#0072B2")
axes.set(xlabel="epoch", ylabel="ELBO, nats", title="Training with pyro.infer.SVI")
plt.show()
