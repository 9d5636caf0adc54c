"""Networks on sequences of vectors and of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .entry import Made, network

B = 6


class _Recurrent(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.enter, self.rnn, self.head = nn.Linear(2, 3), rnn, nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.tanh(self.enter(x)))[0][:, -1])


@network("forecaster, all weights")
def forecaster() -> Made:
    return _Recurrent(nn.LSTM(3, 4, batch_first=True)), torch.randn(B, 5, 2)


@network("forecaster, last layer", random=("head.weight", "head.bias"))
def forecaster_head() -> Made:
    return _Recurrent(nn.GRU(3, 4, batch_first=True)), torch.randn(B, 5, 2)


@network("examples on the second axis", random=("head.*",), in_dims=1)
def second_axis() -> Made:
    class TimeFirst(_Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(self.enter(x))[0][-1])

    return TimeFirst(nn.GRU(3, 4)), torch.randn(5, B, 2)


@network("cell in a loop")
def cell() -> Made:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRUCell(2, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(len(x), 4)
            for step in x.unbind(1):
                h = self.cell(step, h)
            return self.head(h)

    return Cell(), torch.randn(B, 4, 2)


@network("convolutional LSTM")
def conv_lstm() -> Made:
    class ConvLSTM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(2, 1, 1)

        def forward(self, frames: Tensor) -> Tensor:
            h = c = frames.new_zeros(len(frames), 2, *frames.shape[3:])
            for frame in frames.unbind(1):
                i, f, o, g = self.gates(torch.cat([frame, h], 1)).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            return self.head(h)

    return ConvLSTM(), torch.randn(B, 3, 1, 4, 4)


@network("frames folded into the batch")
def folded() -> Made:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frame, self.head = nn.Linear(4, 3), nn.Linear(3, 1)

        def forward(self, video: Tensor) -> Tensor:
            h = torch.relu(self.frame(video.flatten(0, 1))).unflatten(0, video.shape[:2])
            return self.head(h.mean(1))

    return Folded(), torch.randn(B, 5, 4)


@network("transformer encoder")
def transformer() -> Made:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.head = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x).mean(1))

    return Encoder(), torch.randn(B, 5, 4)


@network("conditional decoder by cross attention", in_dims=(0, 0), random=("query.*", "head.*"))
def cross_attention() -> Made:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor, context: Tensor) -> Tensor:
            query = self.query(x)[:, None]
            return self.head(self.attention(query, context, context, need_weights=False)[0][:, 0])

    return Cross(), (torch.randn(B, 3), torch.randn(B, 5, 4))
