"""Lightning
=========

A Bayesian network trained by Lightning's Trainer, which handles devices, nodes, precision, checkpoints and loggers.
Needs ``pip install pyrostoch[lightning]``.

Run it on the bundled digits with ``python examples/lightning_mnist.py``, or on MNIST with ``... mnist``. To use more
devices, pass ``devices=4, num_nodes=2, precision="bf16-mixed"`` to the Trainer; nothing else changes.
"""

import sys

from lightning.pytorch import Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset

import pyrostoch as ps
from pyrostoch.lightning import SVIModule

seed_everything(0)
name = sys.argv[1] if len(sys.argv) > 1 else "digits"
if name not in ("digits", "mnist"):
    sys.exit("usage: python examples/lightning_mnist.py [digits | mnist]")
data = ps.data.load(name)
net = ps.models.MLP(data.x_train[0].numel(), hidden=(100, 100), out_features=10)
model = ps.BayesianModel(
    net, prior=ps.priors.LogUniform(), likelihood=ps.likelihoods.Categorical(), num_data=len(data.x_train)
)
module = SVIModule(model, ps.guides.WeightwiseAlpha(model), lr=1e-2, lr_alpha=0.2, kl_warmup=10.0)

train = DataLoader(TensorDataset(data.x_train.flatten(1), data.y_train), batch_size=100, shuffle=True)
test = DataLoader(TensorDataset(data.x_test.flatten(1), data.y_test), batch_size=1000)
trainer = Trainer(max_epochs=30, logger=False, enable_checkpointing=False, log_every_n_steps=10)
trainer.fit(module, train)
trainer.test(module, test)  # averages the predictions of 20 draws: SVIModule(mode="mc:20") is the default
print(ps.decompose(model, module.guide, (data.x_train.flatten(1), data.y_train), num_samples=5))
