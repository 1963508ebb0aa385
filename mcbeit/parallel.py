"""How several workers train one model: DDP, each with all of it, or FSDP2, each with a part of every tensor."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mcbeit.device import ComputeConfig, Precision
from mcbeit.errors import ConfigError
from mcbeit.group import Group

M = TypeVar("M", bound=nn.Module)


def shard_if_asked(
    model: nn.Module,
    blocks: nn.ModuleList,
    compute: ComputeConfig,
    precision: Precision,
    group: Group,
    device: torch.device,
) -> None:
    """With compute.shard=fsdp, keep of every parameter only this worker's part (FSDP2); those of a block are gathered
    while it is used. Raises ConfigError with fp16.
    """
    if compute.shard == "none" or group.size == 1:
        return
    if precision.scales_loss:
        raise ConfigError("compute.shard=fsdp does not go with fp16; set compute.precision to bf16 or fp32")
    mesh = init_device_mesh(device.type, (group.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def synchronise_norms(model: M, group: Group, device: torch.device) -> M:
    """The model with batch norms that take their sums over all workers; on GPUs only, where torch can do it."""
    if group.size == 1 or device.type != "cuda":
        return model
    synchronised: M = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return synchronised


def share_buffers(model: nn.Module, group: Group, device: torch.device) -> None:
    """Give all workers the statistics of the first one's batch norms, where each has its own (see above).

    So they judge the model that is saved. All of them must call it.
    """
    if group.size > 1 and device.type != "cuda":
        for buffer in model.buffers():
            group.broadcast(buffer)


def is_sharded(model: nn.Module) -> bool:
    """Whether this worker has only a part of the model's parameters."""
    return isinstance(model, FSDPModule)


def replicate(model: nn.Module, group: Group, device: torch.device) -> nn.Module:
    """The model as it is to be called: with DDP around it, if there are other workers and it is not sharded."""
    if group.size == 1 or is_sharded(model):
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


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module with the parts of all workers; all of them must ask for it."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}


def placed_like(value: Tensor, like: Tensor) -> Tensor:
    """`value` on the device of `like`; if that is sharded, this worker's part of it."""
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value
