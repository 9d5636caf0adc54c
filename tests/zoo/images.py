"""Networks on images and signals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pyrostoch as ps

from .entry import Made, network

B = 6


def _image(size: int = 8, channels: int = 1) -> Tensor:
    return torch.randn(B, channels, size, size)


@network("small convolutional network")
def convolutional() -> Made:
    layers = (nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2))
    return nn.Sequential(*layers), _image()


@network("convolutional network with batch normalization", random=("0.weight", "5.weight"))
def normalized() -> Made:
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    return nn.Sequential(*layers), _image()


@network("last layer of a residual network", random=("head.weight",))
def residual_head() -> Made:
    return _Residual(), _image()


@network("residual network")
def residual() -> Made:
    return _Residual(), _image()


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 4, 3, padding=1, bias=False),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Conv2d(4, 4, 3, padding=1, bias=False),
                nn.BatchNorm2d(4),
            )
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = torch.relu(h + block(h))
        return self.head(h.mean((2, 3)))


@network("U-Net")
def unet() -> Made:
    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.bottom = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
            self.up, self.out = nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Conv2d(6, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            skip = torch.relu(self.down(x))
            h = torch.relu(self.bottom(nn.functional.max_pool2d(skip, 2)))
            return self.out(torch.cat([self.up(h), skip], 1))

    return UNet(), _image(4)


@network("separable convolutions")
def separable() -> Made:
    layers = (nn.Conv2d(2, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1), nn.Flatten())
    return nn.Sequential(*layers), _image(4, 2)


@network("squeeze and excitation")
def squeeze() -> Made:
    class Squeeze(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 1)
            self.gate = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.stem(x))
            return self.head((h * self.gate(h.mean((2, 3)))[..., None, None]).mean((2, 3)))

    return Squeeze(), _image(6)


@network("MLP-Mixer")
def mixer() -> Made:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, 4, 4, stride=4)
            self.tokens, self.channels, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.patch(x).flatten(2).mT
            h = h + torch.relu(self.tokens(h.mT)).mT
            h = h + torch.relu(self.channels(h))
            return self.head(h.mean(1))

    return Mixer(), _image()


@network("vision transformer", random=("head.*", "patch.*"))
def vision_transformer() -> Made:
    class Vision(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, 4, 4, stride=4)
            layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(self.patch(x).flatten(2).mT)[:, 0])

    return Vision(), _image()


@network("dilated causal convolutions")
def dilated() -> Made:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv1d(2, 4, 2, dilation=2**k) for k in range(3))
            self.mixes = nn.ModuleList(nn.Conv1d(2, 2, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer, mix in zip(self.layers, self.mixes, strict=True):
                value, gate = layer(nn.functional.pad(x, (layer.dilation[0], 0))).chunk(2, 1)
                x = x + mix(value.tanh() * gate.sigmoid())
            return x[:, :, -1]

    return Causal(), torch.randn(B, 2, 8)


@network("checkpointed blocks")
def checkpointed() -> Made:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(ps.effects.checkpoint(lambda h: torch.relu(self.first(h)), x))

    return Checkpointed(), torch.randn(B, 4)
