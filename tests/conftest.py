"""For every test: one thread, so that figures do not depend on the machine's cores and tests can run side by side."""

import torch

torch.set_num_threads(1)
