"""What is trained on a zoo and shipped: weight layout, VAE, dataset encoder, latent diffusion, and their bundle."""

from pretrained_generators.bundle import embedded_bundles, load_bundle, save_bundle
from pretrained_generators.generator import Generator, GeneratorConfig

__all__ = ["Generator", "GeneratorConfig", "embedded_bundles", "load_bundle", "save_bundle"]
