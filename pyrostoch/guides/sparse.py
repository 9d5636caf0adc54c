"""Layers that store only the nonzero entries of their weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SparseConv2d", "SparseLinear", "csr_bytes"]

# Indices are stored in 32 bits.
_INDEX_BYTES = 4


def csr_bytes(weight: Tensor) -> int:
    """Bytes of a weight in compressed sparse rows, one row for each output neuron or channel."""
    return int(weight.count_nonzero()) * (weight.element_size() + _INDEX_BYTES) + (len(weight) + 1) * _INDEX_BYTES


class _SparseLayer(nn.Module):
    """A weight `(out, in, ...)` in compressed sparse rows.

    The indices are plain buffers and not a torch tensor of CSR layout: such tensors are in beta, and torch warns when a
    process makes its first one. The nonzero values are a parameter, so they can be trained; the zeros stay zero. A
    state dict with other nonzero entries, or another number of them, loads too: the tensors then take its sizes.

    Args:
        weight: The dense weight; its nonzero entries are stored.
        bias: The bias, or `None`.
        shifts: For each row, the number added to its column indices in the product, (out,): of a grouped convolution,
            where the inputs of the row's group start. `None` adds nothing.
        width: Number of columns of the matrix in the product.
    """

    crow_indices: Tensor
    col_indices: Tensor
    groups = 1

    def __init__(self, weight: Tensor, bias: Tensor | None, shifts: Tensor | None, width: int) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        kept = matrix != 0
        rows, columns = kept.nonzero(as_tuple=True)
        if shifts is not None:
            columns = columns + shifts[rows]
        ends = kept.sum(1).cumsum(0)
        self.weight_shape = weight.shape
        self.width = width
        self.values = nn.Parameter(matrix[kept])
        self.register_buffer("crow_indices", torch.cat((ends.new_zeros(1), ends)).to(torch.int32))
        self.register_buffer("col_indices", columns.to(torch.int32))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The dense weight, built at each access, for code that reads a layer's weight."""
        size = self.weight_shape[1:].numel()
        dense = self.values.new_zeros(self.weight_shape[0], size)
        return dense.index_put((self._rows(), self.col_indices.long() % size), self.values).reshape(self.weight_shape)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        parts = ("values", "crow_indices", "col_indices")
        given = [state_dict[prefix + part] for part in parts if prefix + part in state_dict]
        if len(given) == len(parts):
            fault = self._fault(*given)
            if fault:
                error_msgs.append(f"{type(self).__name__} {prefix.rstrip('.')!r}: {fault}")
                return
            if given[0].shape != self.values.shape:
                # In place, so that tied layers and an optimizer still refer to the same parameter.
                for tensor in (self.values, self.col_indices):
                    tensor.data = tensor.data.new_empty(given[0].shape)
                self.values.grad = None
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _fault(self, values: Tensor, ends: Tensor, columns: Tensor) -> str:
        """Why these entries are not a weight of this layer's shape, or ""; the product does not check them."""
        rows, size = self.weight_shape[0], self.weight_shape[1:].numel()
        if ends.dim() != 1 or len(ends) != rows + 1:
            return f"expected {rows} rows (crow_indices of shape {(rows + 1,)}), got crow_indices {tuple(ends.shape)}"
        ends, columns = ends.long(), columns.long()
        counts = ends.diff()
        if values.dim() != 1 or columns.shape != values.shape or ends[0] != 0 or ends[-1] != len(values):
            return (
                f"expected as many values and col_indices as crow_indices count, got values {tuple(values.shape)}, "
                f"col_indices {tuple(columns.shape)} and a count of {int(ends[-1])}"
            )
        if bool((counts < 0).any()):
            return "crow_indices decrease"
        row = torch.arange(rows, device=counts.device).repeat_interleave(counts)
        place = columns - row // max(rows // self.groups, 1) * size
        if bool(((place < 0) | (place >= size)).any()):
            return f"expected {size} columns in a row, got col_indices outside of them"
        if bool(((row * size + place).diff() <= 0).any()):
            return "col_indices of a row are not strictly increasing"
        return ""

    def _rows(self) -> Tensor:
        ends = self.crow_indices.long()
        rows = torch.arange(len(ends) - 1, device=ends.device)
        # With the known output size, a GPU need not be synchronized to read it.
        return rows.repeat_interleave(ends.diff(), output_size=len(self.values))

    def _product(self, columns: Tensor) -> Tensor:
        """The matrix times `columns` of shape (width, n)."""
        # The COO layout is stable, while CSR is in beta. The indices are valid by construction.
        matrix = torch.sparse_coo_tensor(
            torch.stack((self._rows(), self.col_indices.long())),
            self.values,
            (len(self.crow_indices) - 1, self.width),
            is_coalesced=True,
            check_invariants=False,
        )
        return torch.sparse.mm(matrix, columns)


class SparseLinear(_SparseLayer):
    """`torch.nn.Linear` with a weight that is mostly zero, in compressed sparse rows.

    It stores the nonzero values (a trainable parameter), their column indices and the end of each row: in float32, 8
    bytes per nonzero weight instead of 4 per weight. Outputs are those of the dense layer up to rounding.

    Args:
        layer: The dense layer, whose weight contains zeros.

    Example:
        >>> dense = nn.Linear(4, 3)
        >>> with torch.no_grad():
        ...     _ = dense.weight.copy_(torch.eye(3, 4))
        >>> layer = SparseLinear(dense)
        >>> len(layer.values), bool(torch.equal(layer(torch.ones(2, 4)), dense(torch.ones(2, 4))))
        (3, True)
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.weight, layer.bias, None, layer.in_features)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, input: Tensor) -> Tensor:
        """`F.linear(input, weight, bias)` for an input `(..., in)`."""
        if input.shape[-1] != self.in_features:
            raise ValueError(
                f"SparseLinear: expected inputs of {self.in_features} features, got shape {tuple(input.shape)}"
            )
        flat = self._product(input.reshape(-1, self.in_features).t()).t()
        output = flat.reshape(*input.shape[:-1], self.out_features).contiguous()
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        """Sizes, and the number of weights kept."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"kept={len(self.values)} of {self.weight_shape.numel()}"
        )


class SparseConv2d(_SparseLayer):
    """`torch.nn.Conv2d` with a weight that is mostly zero: compressed sparse rows times the unfolded patches.

    Stride, padding (numbers, `"same"`, `"valid"`), padding mode, dilation and groups are those of the dense layer. The
    patches of the whole batch are unfolded in memory, which takes kernel size times the memory of the input.

    Args:
        layer: The dense layer, whose weight contains zeros.

    Example:
        >>> dense = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
        >>> with torch.no_grad():
        ...     _ = dense.weight[:, :, 1:].zero_()
        >>> layer = SparseConv2d(dense)
        >>> x = torch.ones(1, 2, 5, 5)
        >>> len(layer.values), bool(torch.allclose(layer(x), dense(x), atol=1e-6))
        (18, True)
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        channels, size = layer.in_channels, layer.weight.shape[1:].numel()
        group = torch.arange(layer.out_channels, device=layer.weight.device) // (layer.out_channels // layer.groups)
        super().__init__(layer.weight, layer.bias, group * size, channels * layer.weight.shape[2:].numel())
        self.in_channels, self.out_channels, self.groups = channels, layer.out_channels, layer.groups
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding_mode = layer.padding_mode
        self.pads = _pads(layer)

    def forward(self, input: Tensor) -> Tensor:
        """`conv2d` of an input `(batch, in, height, width)` or `(in, height, width)`."""
        if input.dim() not in (3, 4) or input.shape[-3] != self.in_channels:
            raise ValueError(
                f"SparseConv2d: expected an input of shape (batch, {self.in_channels}, height, width), got "
                f"{tuple(input.shape)}"
            )
        images = input if input.dim() == 4 else input.unsqueeze(0)
        if any(self.pads):
            images = F.pad(images, self.pads, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        height, width = (
            (size - step * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, step in zip(
                images.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        patches = F.unfold(images, self.kernel_size, self.dilation, 0, self.stride)
        flat = self._product(patches.transpose(0, 1).reshape(self.width, -1))
        output = flat.reshape(self.out_channels, len(images), height, width).transpose(0, 1).contiguous()
        if self.bias is not None:
            output = output + self.bias.to(output.dtype).reshape(-1, 1, 1)
        return output if input.dim() == 4 else output.squeeze(0)

    def extra_repr(self) -> str:
        """Sizes, and the number of weights kept."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"dilation={self.dilation}, groups={self.groups}, pads={self.pads}, padding_mode={self.padding_mode!r}, "
            f"bias={self.bias is not None}, kept={len(self.values)} of {self.weight_shape.numel()}"
        )


def _pads(layer: nn.Conv2d) -> list[int]:
    """Left, right, top and bottom padding, as `F.pad` takes it."""
    pads: list[int] = []
    for axis in (1, 0):
        if layer.padding == "same":
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            pads += [total // 2, total - total // 2]
        elif layer.padding == "valid":
            pads += [0, 0]
        else:
            pads += [int(layer.padding[axis])] * 2
    return pads
