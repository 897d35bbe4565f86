"""SwitchLoRA in a training loop of your own: three lines (marked), and the loop stays as it is.

python examples/plain_loop.py
"""

import torch
from torch import nn

import switchlora

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
teacher = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
steps = 500

config = switchlora.SwitchLoraConfig(r=16)  # 1
switchlora.convert(model, config)  # 2
optimizer = switchlora.SwitchLora(model, config, total_steps=steps, lr=1e-2)  # 3
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

for step in range(steps):
    x = torch.randn(256, 64)
    loss = (model(x) - teacher(x).detach()).square().mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    if step % 100 == 0 or step == steps - 1:
        print(f"step {step:3}  loss {loss.item():.4f}  switched so far {optimizer.stats.total.switches_done}")

switchlora.to_dense(model)  # plain nn.Linear again, no arithmetic
print(model)
