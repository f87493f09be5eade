"""One of several processes that save a model in shards: `sharded_saving.py WEIGHTS OUT RANK SIZE`.

OUT gets one folder for each way in which programs cut a model: FSDP2 with its optimiser, FSDP with
sharded state dicts as Accelerate saves it, and columns and rows of DTensors.
"""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

import xcite
from xcite.weights import open_weights

warnings.simplefilter("ignore")


def fsdp2(model, out):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    state = {"app": {"model": weights, "optimizer": moments}, "epoch": 3}
    dcp.save(state, checkpoint_id=out / "fsdp2")


def fsdp(model, out):
    sharded = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    with FullyShardedDataParallel.state_dict_type(sharded, StateDictType.SHARDED_STATE_DICT):
        state = {"model": sharded.state_dict()}
    dcp.save(state, checkpoint_id=out / "accelerate" / "pytorch_model_fsdp_0")


def blocks(model, out):
    """Cut along the last dimension, unevenly, in half precision."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {}
    for name, tensor in model.state_dict().items():
        half = tensor.bfloat16() if tensor.is_floating_point() else tensor
        cut = [Shard(half.ndim - 1)]
        state[name] = distribute_tensor(half, mesh, cut) if half.ndim else half
    dcp.save(state, checkpoint_id=out / "columns")


def main(weights, out, rank, size):
    meeting = f"file://{Path(out).absolute() / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=int(rank), world_size=int(size))
    architecture = open_weights(weights).architecture
    for save in (fsdp2, fsdp, blocks):
        model = xcite.create_model(
            "xcit_nano_12_p16", engine="torch", weights=weights, **architecture.fields()
        )
        save(model, Path(out))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
