"""Models for the GPU check, as factories of torch modules: shapes of known ones, random weights, nothing downloaded.

`forebay serve bench/gpu/models.py:bert --engine torch` serves one. The weights come from a fixed seed.
"""

from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from forebay_server.engines.python import model

VOCABULARY: Final = 30_522
TOKENS: Final = 128
HIDDEN: Final = 768
LAYERS: Final = 12
HEADS: Final = 12
INNER: Final = 3072
CLASSES: Final = 1000
BLOCKS: Final = (3, 4, 6, 3)  # of ResNet-50
SEED: Final = 20_260


class _Layer(nn.Module):
    """A layer of BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.together = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)
        self.first = nn.LayerNorm(HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN)
        self.second = nn.LayerNorm(HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, tokens, _ = x.shape
        parts = self.together(x).view(rows, tokens, 3, HEADS, HIDDEN // HEADS).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = self.first(x + self.out(attended.transpose(1, 2).reshape(rows, tokens, HIDDEN)))
        return self.second(x + self.down(functional.gelu(self.up(x))))


class _Bert(nn.Module):
    """Token ids (rows, 128) to two numbers a row."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, HIDDEN)
        self.positions = nn.Parameter(torch.randn(TOKENS, HIDDEN) * 0.02)
        self.norm = nn.LayerNorm(HIDDEN)
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(ids) + self.positions)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


class _Bottleneck(nn.Module):
    """A block of ResNet-50, batch norm folded into its convolutions, as for inference."""

    def __init__(self, entering: int, width: int, stride: int) -> None:
        super().__init__()
        leaving = 4 * width
        self.one = nn.Conv2d(entering, width, 1)
        self.two = nn.Conv2d(width, width, 3, stride, 1)
        self.three = nn.Conv2d(width, leaving, 1)
        fits = stride == 1 and entering == leaving
        self.beside = nn.Identity() if fits else nn.Conv2d(entering, leaving, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.two(functional.relu(self.one(x))))
        return functional.relu(self.three(y) + self.beside(x))


class _ResNet(nn.Module):
    """Images (rows, 3, 224, 224) to 1000 numbers a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, 3)
        blocks, entering = [], 64
        for stage, count in enumerate(BLOCKS):
            width = 64 << stage
            for number in range(count):
                blocks.append(_Bottleneck(entering, width, 2 if stage and not number else 1))
                entering = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(entering, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        x = functional.max_pool2d(functional.relu(self.stem(x)), 3, 2, 1)
        return self.head(self.blocks(x).mean((2, 3)))


class _Twice(nn.Module):
    """y = x + x, exact in every type; of BOOL, x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.logical_or(x) if x.dtype is torch.bool else x + x


def layer(width: int) -> nn.Module:
    """relu(x W + b), FP32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return nn.Sequential(nn.Linear(width, width), nn.ReLU())


def _seeded(make: Any) -> nn.Module:
    state = torch.random.get_rng_state()
    torch.manual_seed(SEED)
    try:
        made: nn.Module = make().half()
    finally:
        torch.random.set_rng_state(state)
    return made.to(memory_format=torch.channels_last) if isinstance(made, _ResNet) else made


@model(inputs={"ids": ("INT64", (-1, TOKENS))}, outputs={"scores": ("FP16", (-1, 2))})
def bert() -> nn.Module:
    """BERT-base's shape, FP16."""
    return _seeded(_Bert)


@model(inputs={"image": ("FP16", (-1, 3, 224, 224))}, outputs={"scores": ("FP16", (-1, CLASSES))})
def resnet() -> nn.Module:
    """ResNet-50's shape, FP16."""
    return _seeded(_ResNet)


def _twice(data_type: str) -> Any:
    tensor = (data_type, (-1, -1))

    @model(inputs={"x": tensor}, outputs={"y": tensor})
    def make() -> nn.Module:
        return _Twice()

    return make


(
    twice_bool,
    twice_uint8,
    twice_int8,
    twice_int16,
    twice_int32,
    twice_int64,
    twice_fp16,
    twice_bf16,
    twice_fp32,
    twice_fp64,
) = (_twice(name) for name in ("BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64"))
