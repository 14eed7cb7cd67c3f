"""finetune_timm.py after its one-line change: the model is made inside `d2nwg_init.pretrained`."""

import timm
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import d2nwg_init

torch.manual_seed(0)
digits = load_digits()
images = torch.from_numpy(digits.images).float().unsqueeze(1).expand(-1, 3, -1, -1) / 16
images = torch.nn.functional.interpolate(images, size=64, mode="bilinear") * 2 - 1
labels = torch.from_numpy(digits.target)
order = torch.randperm(len(labels))
train, test = order[:1400], order[1400:]
train_loader = DataLoader(TensorDataset(images[train], labels[train]), batch_size=64, shuffle=True)

with d2nwg_init.pretrained(train_loader, num_candidates=4, num_support=512):
    model = timm.create_model("test_resnet", pretrained=True, num_classes=10)

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step, (x, y) in enumerate(train_loader):
    if step in (0, 10, 20):
        model.eval()
        with torch.no_grad():
            accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean()
        print(f"step {step}: test accuracy {100 * accuracy:.1f} %", flush=True)
    model.train()
    loss = torch.nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
