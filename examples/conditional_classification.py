"""Noise for each class
====================

Noise with a distribution of its own for each class is put on images before a network sees them. It is trained with the
labels known; for images whose label is not known, a selection combines the classes. How much of the accuracy is left,
and how large is the noise?

Run it without arguments for the bundled digits (under a minute), or with ``--data mnist`` (some twenty minutes; the
environment variable PYROSTOCH_DATA is the folder of the files).
"""

import argparse

import torch
from matplotlib import pyplot as plt
from torch import nn

import pyrostoch as ps

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
parser.add_argument("--epochs", type=int, help="passes through the training data in each step")
options = parser.parse_args()

split = ps.data.load(options.data)
train, test = (split.x_train, split.y_train), (split.x_test, split.y_test)
size = split.x_train.shape[-1]
kernel, width, squares = (3, 288, 2) if options.data == "digits" else (5, 4608, 4)
epochs = options.epochs or (25 if options.data == "digits" else 6)


def trained(make_selection):
    """Train the noise with known labels, then selection and network; return the model, its guide and the layer."""
    torch.manual_seed(0)
    layer = ps.layers.Conditional(lambda: ps.layers.StochasticAdditive((1, size, size), scale=0.3), 10, where="output")
    net = nn.Sequential(
        layer, nn.Conv2d(1, 32, kernel), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(width, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    model = ps.BayesianModel(net, likelihood=ps.likelihoods.Categorical(), num_data=len(train[0]))
    guide = ps.guides.Additive(model)
    ps.fit_two_steps(
        model, guide, train, selection=make_selection(), epochs=(epochs, epochs), first={"noise_weight": 0.05}, lr=3e-3,
        schedule="cosine", seed=0, progress=False, compile=False,
    )  # fmt: skip
    return model, guide, layer


# %%
# A gate computes the selection from the image; static tensors are the same for every image, and cannot adapt to it.

side = size // squares
selections = {
    "gate": lambda: ps.layers.GatedSelection(
        nn.Sequential(nn.AvgPool2d(squares), nn.Flatten(), nn.Linear(side * side, 10))
    ),
    "static": lambda: ps.layers.SoftSelection(10, (1, size, size), "softmax"),
}
found = {name: trained(make) for name, make in selections.items()}
for name, (model, guide, _) in found.items():
    print(f"--- {name}")
    print(ps.compare(model, guide, test, modes=("mean", "mc:1", "mc:20"), seed=0))
    print(ps.activation_noise(model, guide, train))

# %%
# A single draw hides more than an average over twenty; noise that has died would prove nothing, so its size is shown
# beside that of the clean image. With the label given instead, the score is near 100 %, and is no result: the layer of
# a class can tell that class to the network. A wrong label shows how far it is believed.

model, guide, layer = found["gate"]
print(ps.compare(model, guide, test, modes=("mc:20",), labels="known", seed=0))
wrong = (test[1] + 1) % 10
answers = ps.predict(model, guide, test[0], labels=wrong, seed=0).probs.argmax(-1)
print(f"with a wrong label: that label {100 * (answers == wrong).float().mean():.1f} %, ", end="")
print(f"the right one {100 * (answers == test[1]).float().mean():.1f} %")

# %%
# One image of each class: clean, as the network sees it, and the noise of its class by pixel.

rows = torch.stack([(test[1] == c).nonzero()[0, 0] for c in range(10)])
images = test[0][rows]
with torch.no_grad():
    drawn = layer(images)
    spread = torch.stack([own.log_scale.exp()[0] for own in layer.classes])
figure, axes = plt.subplots(3, 10, figsize=(9.0, 3.2), layout="constrained")
for row, (title, pictures) in enumerate((("image", images[:, 0]), ("drawn", drawn[:, 0]), ("noise, sd", spread))):
    axes[row, 0].set_ylabel(title)
    for column, picture in enumerate(pictures):
        axes[row, column].imshow(picture.numpy(), cmap="gray" if row < 2 else "viridis")
        axes[row, column].set(xticks=[], yticks=[])
plt.show()
