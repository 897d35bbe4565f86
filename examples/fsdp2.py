"""SwitchLoRA on a model that several processes share out among them (FSDP2), in a loop of your own.

torchrun --nproc-per-node 2 examples/fsdp2.py

Convert, then shard, then make the optimizer: the order is all that is new. Every process holds its rows of W, A, B, of
the moments and of the candidates; what a step needs of others' it asks for.
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import switchlora

device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
if device.type == "cuda":
    torch.cuda.set_device(device)
dist.init_process_group()
rank, world_size = dist.get_rank(), dist.get_world_size()

torch.manual_seed(0)  # the same model everywhere
model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).to(device)
teacher = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).to(device)
steps, batch_size = 200, 256

config = switchlora.SwitchLoraConfig(r=16)
switchlora.convert(model, config)  # 1
for layer in (model[0], model[2]):
    fully_shard(layer)  # 2
fully_shard(model)
optimizer = switchlora.SwitchLora(model, config, total_steps=steps, lr=1e-2)  # 3

for step in range(steps):
    x = torch.randn(batch_size, 64, device=device)[rank::world_size]  # this process's share of one batch
    loss = (model(x) - teacher(x).detach()).square().mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 0 or step == steps - 1:
        total = loss.detach().clone()
        dist.all_reduce(total)
        if rank == 0:
            switched = optimizer.stats.total.switches_done
            print(f"step {step:3}  loss {total.item() / world_size:.4f}  switched so far {switched}", flush=True)

weights = model.state_dict()  # each process's rows; full_tensor() makes one whole again
dense = {name: tensor.full_tensor() for name, tensor in weights.items() if "lora_" not in name}
if rank == 0:
    print("dense:", {name: tuple(tensor.shape) for name, tensor in dense.items()})
dist.destroy_process_group()
