"""Modules whose answers are known."""

import torch


class Mixed(torch.nn.Module):
    """Something of every data type, in and out, and a length that is not the batch's."""

    INPUTS = ("ids", "mask", "flag", "small", "half", "brain", "single", "double", "octet", "sixteen", "thirtytwo")

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(32, dtype=torch.float32) * 2)
        self.linear = torch.nn.Linear(4, 3)
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(12.0).reshape(3, 4) - 5)
            self.linear.bias.copy_(torch.arange(3.0))

    def forward(self, ids, mask, flag, small, half, brain, single, double, octet, sixteen, thirtytwo):
        found = self.table[ids] * mask
        return {
            "found": found,
            "total": found.sum(dim=1),
            "not_flag": ~flag,
            "small": small + 1,
            "half": half * 2,
            "brain": brain * 2,
            "scores": self.linear(single),
            "double": double / 2,
            "octet": octet + octet,
            "sixteen": sixteen - 1,
            "thirtytwo": thirtytwo * 3,
            "same": single,
        }

    @staticmethod
    def example(rows, tokens):
        """Inputs by name; each row has its own values."""
        count = torch.arange(rows)
        per_row = count[:, None] + torch.arange(4)
        positions = torch.arange(tokens)
        return {
            "ids": (count[:, None] + positions) % 32,
            "mask": ((count[:, None] + positions) % 2).to(torch.bool),
            "flag": count % 2 == 0,
            "small": count.to(torch.int8) - 2,
            "half": per_row.to(torch.float16) / 4,
            "brain": per_row.to(torch.bfloat16) / 4,
            "single": per_row.to(torch.float32) / 3,
            "double": per_row.to(torch.float64) / 3,
            "octet": per_row.to(torch.uint8),
            "sixteen": per_row.to(torch.int16),
            "thirtytwo": per_row.to(torch.int32),
        }


class Scale(torch.nn.Module):
    """`y = factor * x`."""

    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x):
        return x * self.factor
