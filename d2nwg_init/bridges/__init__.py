"""Drop-ins for pretrained=True of timm and for the weights of torchvision."""
