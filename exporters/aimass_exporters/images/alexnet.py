"""AlexNet in PyTorch, with the weight names of torchvision's. Source: Krizhevsky, arXiv 1404.5997."""

from __future__ import annotations

import torch
from torch import nn


class AlexNet(nn.Module):
    """Five convolutions and three linear layers on images of 224 x 224 pixels."""

    def __init__(self, num_labels: int, *, num_units: int = 4096) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, num_units),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(num_units, num_units),
            nn.ReLU(),
            nn.Linear(num_units, num_labels),
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, num_labels] of pixels [batch, 3, 224, 224]."""
        logits: torch.Tensor = self.classifier(torch.flatten(self.features(pixel_values), 1))
        return logits
