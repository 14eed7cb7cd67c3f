"""initialize() on a model of your own; its report; a folder that timm loads; and the way back."""

import sys
import tempfile

import timm
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import d2nwg_init

folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
digits = load_digits()
images = torch.from_numpy(digits.images).float().unsqueeze(1).expand(-1, 3, -1, -1) / 8 - 1
images = torch.nn.functional.interpolate(images, size=64, mode="bilinear")
train_loader = DataLoader(TensorDataset(images, torch.from_numpy(digits.target)), batch_size=64, shuffle=True)

model = timm.create_model("test_resnet", num_classes=10)
report = d2nwg_init.initialize(model, train_loader, num_candidates=2, num_support=256)
print(report)

report.save(folder)
again = timm.create_model(f"local-dir:{folder}", pretrained=True)
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
print(f"timm loads the same weights from {folder}")

report.revert()
print("the model is as it was passed")
