"""Detect hidden digits
=======================

Every pixel of an image gets noise whose distribution depends on what is there: a digit of some class, or background.
The noise is trained with boxes around the digits; behind it, a detector still finds them. At inference nothing is known
of the image but the image: a gate selects the classes of its pixels.

Run it without arguments for small scenes of the bundled digits (about two minutes), or with ``--data mnist`` (some
twenty minutes; the environment variable PYROSTOCH_DATA is the folder of the files).
"""

import argparse

import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from torch import nn

import pyrostoch as ps

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
parser.add_argument("--epochs", type=int, nargs=2, help="passes through the training scenes in each step")
parser.add_argument("--noise", type=float, default=0.35, help="standard deviation at which the noise starts")
options = parser.parse_args()

is_small = options.data == "digits"
size, count, batch_size, lr = (32, 400, 20, 5e-3) if is_small else (96, 1000, 16, 2e-3)
epochs = tuple(options.epochs or ((16, 10) if is_small else (8, 5)))
scenes = {"data": options.data, "size": size, "digits": (1, 3) if is_small else (2, 5)}
train, test = ps.data.DigitScenes("train", count, **scenes), ps.data.DigitScenes("test", 100, **scenes).stored()

# %%
# The layer has kernels for each of the ten digits and for the background: of the mean of a pixel, and of its standard
# deviation. They begin near the image itself, under noise about as large as the images' own standard deviation. Of this
# a person still sees the digits; ``--noise 1`` hides them better, and costs more.


def noise():
    layer = ps.layers.StochasticConv2d(1, 1, 3, padding=1)
    with torch.no_grad():
        layer.kernel.weight.mul_(0.1)
        layer.kernel.weight[0, 0, 1, 1] += 1.0
        layer.kernel.bias[1] = torch.tensor(options.noise).expm1().log()
    return layer


class Gate(nn.Sequential):
    def forward(self, x):
        return super().forward(x)[:, :, None]  # (batch, classes, 1, height, width)


torch.manual_seed(0)
layer = ps.layers.Conditional(noise, 10, where="output", background="class")
net = ps.layers.embody.prepend(ps.models.Detector(width=16), layer)
loss = ps.likelihoods.Loss(ps.models.DetectionLoss(), targets=("boxes", "labels"))
model = ps.BayesianModel(net, likelihood=loss, num_data=count)
guide = ps.guides.Additive(model)  # no weight is random

# %%
# In the first step the pixels in the boxes are known to be of their classes; in the second one the noise stays as it
# is, and the gate is trained with the detector.

classes = ps.layers.PixelClasses(10, size=(size, size))
gate = Gate(
    nn.Conv2d(1, 16, 5, 2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(),
    nn.Conv2d(32, 4 * 11, 1), nn.PixelShuffle(2),
)  # fmt: skip
settings = {"batch_size": batch_size, "lr": lr, "schedule": "cosine", "seed": 0, "progress": False, "compile": False}
data = train.pairs("boxes", "labels")
result = ps.fit_two_steps(
    model, guide, data, selection=ps.layers.GatedSelection(gate), labels=classes, epochs=epochs,
    first={"noise_weight": 0.3}, **settings,
)  # fmt: skip
print(result)
print(ps.activation_noise(model, guide, data, batch_size=batch_size))

# %%
# A detector of clean scenes, trained for as long, shows what the noise costs.

torch.manual_seed(0)
clean = ps.BayesianModel(ps.models.Detector(width=16), likelihood=loss, num_data=count)
nothing = ps.guides.Additive(clean)
ps.fit(clean, nothing, data, epochs=sum(epochs), **settings)


def average_precision(output):
    metric = ps.metrics.AveragePrecision(10)
    for image, found in enumerate(ps.models.detect(output)):
        some = int(test["count"][image])
        overlaps = ps.metrics.box_overlaps(found.boxes, test["boxes"][image, :some])
        metric.update(overlaps, found.scores, found.labels, test["labels"][image, :some])
    return metric.compute().ap50


hidden = ps.outputs(model, guide, test["image"], batch_size=batch_size)
for title, output in (
    ("clean scenes", ps.outputs(clean, nothing, test["image"], mode="mean", batch_size=batch_size)),
    ("hidden, one draw", hidden),
    ("hidden, mean of 20 draws", ps.outputs(model, guide, test["image"], mode="mc:20", batch_size=batch_size)),
):
    print(f"{title}: AP50 {100 * average_precision(output):.1f} %")

# %%
# A scene; what the network sees of it; the class that is selected at each pixel, which the gate was never told to get
# right; and what is found, with the scores.

row = int(test["count"].argmax())
image = test["image"][row : row + 1]
with torch.no_grad():
    selected, seen = layer.selection(image)[0, :, 0].argmax(0), layer.eval()(image)[0, 0]
found = ps.models.detect(ps.outputs(model, guide, image), threshold=0.5)[0]
figure, axes = plt.subplots(1, 4, figsize=(10.0, 2.8), layout="constrained")
panels = (
    ("scene", image[0, 0], "gray"),
    ("as the network sees it", seen, "gray"),
    ("selected class", selected, "tab20"),
)
for axis, (title, panel, colors) in zip(axes, (*panels, ("found", image[0, 0], "gray")), strict=True):
    axis.imshow(panel.numpy(), cmap=colors, interpolation="nearest")
    axis.set(xticks=[], yticks=[], title=title)
for box, label, score in zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True):
    left, top, right, bottom = box
    axes[3].add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color="tab:orange"))
    axes[3].text(left, top - 1.0, f"{label} ({score:.2f})", color="tab:orange", fontsize=8)
plt.show()
