"""PyTorch twins of RingTMP's models: the same layers, start values, loss and optimizers, eager, on one thread."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ringtmp.nn.layer import Layer
from ringtmp.nn.layers.containers import Activation, Block, Dropout, Flatten, Residual
from ringtmp.nn.layers.dense import Dense
from ringtmp.nn.layers.images import AvgPool2D, Conv2D, MaxPool2D
from ringtmp.nn.layers.norm import GroupNorm, LayerNorm
from ringtmp.nn.layers.sequences import Attention, Embedding
from ringtmp.nn.model import Model

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class _Attention(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, places, triple = x.shape
        q, k, v = x.view(rows, places, 3, self.heads, triple // 3 // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).reshape(rows, places, triple // 3)


class _Embedding(nn.Module):
    def __init__(self, tokens: int, places: int, width: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(tokens, width), nn.Parameter(torch.zeros(places, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.token(x) + self.position


class _Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class _Flatten(nn.Module):
    """In the order of our images, channels last, so that the same weights follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x.flatten(1)


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _fill(parameter: Any, array: Any) -> None:
    with torch.no_grad():
        parameter.copy_(_tensor(array).reshape(parameter.shape))


def _plain(layer: Layer, p: dict[str, Any]) -> nn.Module:
    """Twin of a layer without an activation of its own."""
    made: nn.Module
    if isinstance(layer, Embedding):
        made = _Embedding(layer.tokens, layer.shape[0], layer.width)
        _fill(made.token.weight, p["token"])
        _fill(made.position, p["position"])
    elif isinstance(layer, LayerNorm):
        made = nn.LayerNorm(layer.shape[-1])
        _fill(made.weight, p["gain"])
        _fill(made.bias, p["bias"])
    elif isinstance(layer, GroupNorm):
        made = nn.GroupNorm(layer.groups, layer.shape[2])
        _fill(made.weight, p["gain"])
        _fill(made.bias, p["bias"])
    elif isinstance(layer, MaxPool2D):
        made = nn.MaxPool2d(layer.size, layer.stride)
    elif isinstance(layer, AvgPool2D):
        made = nn.AvgPool2d(layer.size, layer.stride)
    elif isinstance(layer, Attention):
        made = _Attention(layer.heads)
    elif isinstance(layer, Dropout):
        made = nn.Dropout(layer.rate)
    elif isinstance(layer, Activation):
        made = _ACTIVATIONS[layer.function]()
    elif isinstance(layer, Flatten):
        made = _Flatten()
    else:
        raise TypeError(f"no twin of {layer.kind}")
    return made


def _twin(layer: Layer, p: dict[str, Any]) -> nn.Module:
    if isinstance(layer, Block):
        parts = []
        for n, inner in enumerate(layer.layers):
            prefix = f"{n}."
            parts.append(_twin(inner, {k.removeprefix(prefix): a for k, a in p.items() if k.startswith(prefix)}))
        inner_net = nn.Sequential(*parts)
        return _Residual(inner_net) if isinstance(layer, Residual) else inner_net
    if isinstance(layer, Dense):
        dense = nn.Linear(layer.shape[-1], layer.units, bias=layer.bias)
        _fill(dense.weight, p["weight"].T)
        product: nn.Module = dense
    elif isinstance(layer, Conv2D):
        conv = nn.Conv2d(layer.shape[2], layer.filters, layer.size, layer.stride, layer.pad, bias=layer.bias)
        _fill(conv.weight, p["weight"].transpose(3, 2, 0, 1))
        product = conv
    else:
        return _plain(layer, p)
    if layer.bias:
        _fill(product.bias, p["bias"])
    if layer.activation == "linear":
        return product
    return nn.Sequential(product, _ACTIVATIONS[layer.activation]())


class Twin:
    """A PyTorch network with the weights of a RingTMP model, and its optimizer (fused kernels: PyTorch's fastest).

    Parameters
    ----------
    model : Model
        The RingTMP model.
    parameters : list of dict
        Parameters of each layer, from `Layer.unpack`.
    optimizer, lr : str, float
        "momentum" or "adamw" (without weight decay); learning rate.
    """

    def __init__(self, model: Model, parameters: list[dict[str, Any]], optimizer: str, lr: float) -> None:
        self.model = model
        layers = [_twin(layer, p) for layer, p in zip(model.layers, parameters, strict=True)]
        self.net = nn.Sequential(*layers)
        self.run: Any = self.net
        self.images = len(model.layers[0].shape) == 3
        if optimizer == "momentum":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                self.net.parameters(), lr=lr, momentum=0.9, fused=True
            )
        else:
            self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=lr, weight_decay=0.0, fused=True)

    def compile(self) -> None:
        """Use `torch.compile` from now on."""
        self.run = torch.compile(self.net)

    def inputs(self, x: Any) -> torch.Tensor:
        """Samples `x` [rows, features] in the shape that the network takes."""
        tensor = _tensor(x)
        if self.images:
            tensor = tensor.reshape(len(tensor), *self.model.layers[0].shape).permute(0, 3, 1, 2).contiguous()
        return tensor

    def step(self, x: torch.Tensor, y: torch.Tensor, pieces: int) -> float:
        """Make one optimizer step on samples `x` and labels `y` in `pieces` micro-batches; return the mean loss."""
        total, predictions = 0.0, y.numel()
        self.optimizer.zero_grad(set_to_none=True)
        for part, labels in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
            out = self.run(part)
            loss = functional.cross_entropy(out.reshape(-1, out.shape[-1]), labels.reshape(-1), reduction="sum")
            (loss / predictions).backward()
            total += float(loss.detach())
        self.optimizer.step()
        return total / predictions
