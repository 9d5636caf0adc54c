"""The bench `privacy`: what is learned from obfuscated examples, and what attackers read of what a client sends."""

from __future__ import annotations

from pyrostoch.bench.case import Bench
from pyrostoch.bench.published.privacy_audit import AUDIT_CASES
from pyrostoch.bench.published.privacy_picture import draw_curves
from pyrostoch.bench.published.privacy_progressive import PROGRESSIVE_CASES
from pyrostoch.bench.published.privacy_scenes import SCENE_CASES

__all__ = ["PRIVACY"]

PRIVACY = Bench(
    name="privacy",
    title="Obfuscated examples",
    cases=(*PROGRESSIVE_CASES, *AUDIT_CASES, *SCENE_CASES),
    columns=(
        ("accuracy/alone-5", "after 5 % clean, %"),
        ("accuracy/result-5", "with the rest, %"),
        ("accuracy/alone-25", "after 25 % clean, %"),
        ("accuracy/result-25", "with the rest, %"),
        ("noise/ratio-5", "noise / signal at 5 %"),
        ("noise/ratio-25", "noise / signal at 25 %"),
        ("accuracy/obfuscated", "of obfuscated images, one draw, %"),
        ("scenes/ap50", "AP50, %"),
        ("scenes/alone-25", "AP50 after 25 % clean, %"),
        ("scenes/result-25", "with the rest, %"),
        ("scenes/alone-50", "AP50 after 50 % clean, %"),
        ("scenes/result-50", "with the rest, %"),
        ("accuracy/clean", "task without noise, %"),
        ("probe", "linear probe at the cut, %"),
        ("client/share", "client's multiplications, %"),
        ("accuracy/sent", "task from one query, %"),
        *((f"digit/{count}", f"digit read from {count}, %") for count in ("label", "noise-free", 1, 10, 100)),
        *((f"mse/{count}", f"squared error from {count}") for count in ("label", "noise-free", 1, 10, 100)),
        ("mse/ssim/1", "SSIM from 1"),
        ("searched/normal/1", "squared error, search, normal prior"),
        ("searched/generative/1", "squared error, search, generative prior"),
        ("bound/rate", "told at most, nats"),
        ("bound/least", "told at least, nats"),
        ("epsilon/1", "epsilon, 1 query"),
        ("epsilon/100", "epsilon, 100 queries"),
        ("strength", "strength"),
        ("strength/reached", "at most half read"),
        ("digit/counts/1", "verdict on the digit counts"),
        ("mse/counts/1", "verdict on the image counts"),
    ),
    published={},
    notes=(
        "A small convolutional network is trained on 5 % of MNIST, then on both parts with the rest obfuscated by its "
        "own conditional layer (noise with a mean and a standard deviation for each class and pixel), then on 25 %. "
        "A quarter of the obfuscated images is screened in patches of 4 x 4, anew in every epoch. Accuracies are those "
        "on clean test images by the mean; the last column is under the layer and its gate.",
        "Pseudo-labels are those that the network of the first step gives the clean images of the rest, whose labels "
        "are then not used. BALD chooses the 5 % in five rounds, each among 10,000 images, by the mutual information "
        "of 20 draws of dropout. The clean part alone is trained for as many steps as both parts together. "
        "Distilled images (Wang et al. 2018) are learned from all clean ones: 20 for each of 5 steps of gradient "
        "descent from any start, with learned rates. They stand in place of the clean 5 %; all images are the rest.",
        "Audits: a client sends the noisy activations of a layer of LeNet5 (6 and 16 convolutions, 120 neurons) that "
        "tells whether a digit is greater than 5; attackers want the digit and the image. Noise by class has a learned "
        "mean and standard deviation for each unit and each of the two classes, and behind the dense layer kernels of "
        "both for each class, under a weight of its rate; its soft "
        "selection is a gate that is linear in what the client computes. All is trained together, from the network "
        "without noise. The weight is the least of .001, .003, .01, .03, .1, .3 with which an attacker reads at most "
        "half of the digits of held-out training images. The other kinds of noise have the strength with which the "
        "task is as accurate on these, found by bisection.",
        "Isotropic noise is a Gaussian mechanism: activations are clipped to the median of their norms; epsilon is for "
        "delta = 1e-5. With the predicted class the layer is trained for half of the epochs under its gate, and for "
        "the other half under the class that this gate chooses, with the client fixed.",
        "A squared error is that of reconstructed images; the column of the label is a guess from the task's answer "
        "alone: the client might compute the answer itself and send nothing else. Where a linear probe of the clean "
        "activations is as good as the network, it could. Attackers train on fresh draws; a verdict counts (1) where "
        "the attacker was strong enough. The search attacks 100 images.",
        "Objects: a detector tells digits greater than 5 from others on scenes of 2 to 5 digits, under noise in front "
        "of it: kernels of 5 x 5 for both classes and the background, with a gate for the classes of pixels, or "
        "isotropic noise on the pixels. It goes on from the clean detector. Attackers see what was sent of 32 x 32 "
        "pixels around each true box.",
    ),
    source="",
    figure=draw_curves,
)
