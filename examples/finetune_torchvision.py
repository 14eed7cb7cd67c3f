"""torchvision's door: weights made for a loader's images, in the place of one of its own weights enums.

No bundle covers resnet18: its body stays untrained, and its head is solved. A pretrained model goes into `initialize`.
"""

import torch
import torchvision
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import d2nwg_init

digits = load_digits()
images = torch.from_numpy(digits.images).float().unsqueeze(1).expand(-1, 3, -1, -1) / 8 - 1
images = torch.nn.functional.interpolate(images, size=32, mode="bilinear")
labels = torch.from_numpy(digits.target)
train_loader = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=64, shuffle=True)

torch.manual_seed(0)
weights = d2nwg_init.weights("resnet18", train_loader, num_classes=10, init={"num_support": 256})
model = torchvision.models.get_model("resnet18", weights=weights)
print(weights.init_report)

model.eval()
with torch.no_grad():
    accuracy = (model(images[1400:]).argmax(1) == labels[1400:]).float().mean()
print(f"test accuracy before any training: {100 * accuracy:.1f} %")
