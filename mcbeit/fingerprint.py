"""What makes vectors comparable, as one number: SHA-256 over weights, preprocessing and what is made of the tokens."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

UNUSED = ("mask_token",)  # tensors that no embedding depends on


def fingerprint(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> str:
    """The hash of tensors by name, as float32, in the order of their names, and of JSON values.

    Which file the tensors came from and in which layout does not matter. Integers, which count batches, are left out.
    """
    found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        if value.is_floating_point() and name not in UNUSED:
            found.update(f"{name}{list(value.shape)}".encode())
            found.update(value.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return found.hexdigest()
