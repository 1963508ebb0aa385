"""Several processes on this machine that train together, as torchrun would start them, without its start-up time."""

import os
import pickle
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from mcbeit.group import Group
from mcbeit.worker import Worker


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(worker, *arguments)` returns in each process, or the exception that it ended with.

    The function is one of a module: the processes import it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (size, port, folder, function, arguments), nprocs=size)
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(size)]


def _rank(rank: int, size: int, port: int, folder: str, function: Callable[..., Any], arguments: tuple[Any]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        result = function(Worker(Group.current()), *arguments)
    except Exception as error:
        traceback.print_exc()
        result = error
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(result))
    dist.destroy_process_group()
