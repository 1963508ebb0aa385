"""A process that writes to an index until it is killed, and what must then be there."""

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mcbeit.fake_encoder import FakeEncoder
from mcbeit.serve.store_folder import StoreFolder
from mcbeit.serve.store_items import Question, StoreItem

SPEC = FakeEncoder(dim=8).spec
OWN = SPEC.fingerprint


def vector(seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal(8).astype(np.float32)
    return found / np.linalg.norm(found)


def item(name: str, seed: int, **metadata: Any) -> StoreItem:
    return StoreItem(name, vector(seed), metadata or None)


WRITER = """
import random, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from store_writer import OWN, SPEC, item
from mcbeit.serve.store_folder import StoreFolder
folder, rng = StoreFolder(Path(sys.argv[1])), random.Random(int(sys.argv[3]))
folder.create("shop", SPEC)
while True:
    names = [str(rng.randrange(30)) for _ in range(rng.randrange(1, 12))]
    if rng.random() < 0.7:
        seed = rng.randrange(10**6)
        print("begin upsert", seed, *names, flush=True)
        folder.upsert("shop", [item(name, seed + int(name)) for name in names], OWN)
    else:
        print("begin delete 0", *names, flush=True)
        folder.delete("shop", names)
    print("done", flush=True)
"""


def killed_writer(path: Path, seed: int, model: dict[str, int]) -> int:
    """Kill a process that writes, and check what is left of its work against what it acknowledged; how many calls."""
    command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent), str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    calls, wanted = 0, random.Random(seed).randrange(1, 80)
    pending: list[str] = []
    for line in process.stdout:
        words = line.split()
        if words[0] == "begin":
            pending = words[1:]
            if calls == wanted:
                process.send_signal(signal.SIGKILL)
        else:
            apply(model, pending)
            pending, calls = [], calls + 1
    process.wait()
    process.stdout.close()
    folder = StoreFolder(path)
    found = {one.id: one.vector for one in folder.page("shop", None, 1000)[0]}
    searched = {hit.id for hit in folder.search("shop", Question(vector(1), k=100), OWN)}
    folder.close()
    if not same(found, model):  # the call that was under way is there whole, or not at all
        apply(model, pending)
    assert same(found, model)
    assert searched == model.keys()
    return calls


def apply(model: dict[str, int], words: list[str]) -> None:
    if words and words[0] == "upsert":
        model.update({name: int(words[1]) + int(name) for name in words[2:]})
    for name in words[2:] if words and words[0] == "delete" else []:
        model.pop(name, None)


def same(found: dict[str, np.ndarray], model: dict[str, int]) -> bool:
    return found.keys() == model.keys() and all(
        np.allclose(found[name], vector(model[name]), atol=1e-6) for name in found
    )
