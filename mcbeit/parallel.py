"""How several workers train one model: DDP, each with all of it, or FSDP2, each with a part of every tensor."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mcbeit.group import Group

Shard = Literal["none", "fsdp"]


def shard_parameters(model: nn.Module, blocks: nn.ModuleList, group: Group, device: torch.device) -> None:
    """Keep of every parameter only this worker's part (FSDP2), gathering those of a block while it is used."""
    mesh = init_device_mesh(device.type, (group.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def replicate(model: nn.Module, group: Group, device: torch.device) -> nn.Module:
    """The model as it is to be called: with DDP around it, if there are other workers and it is not sharded."""
    if group.size == 1 or isinstance(model, FSDPModule):
        return model
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


@contextmanager
def gradients_stay_here(network: nn.Module) -> Iterator[None]:
    """Backward passes in here add to this worker's gradients only; the next one outside shares the sum."""
    if isinstance(network, DistributedDataParallel):
        with network.no_sync():
            yield
    elif isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            network.set_requires_gradient_sync(True)
    else:
        yield


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all workers; all of them must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(value: Tensor, like: Tensor) -> Tensor:
    """`value` on the device of `like`; if that is sharded, this worker's part of it."""
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value
