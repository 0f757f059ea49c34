"""Names that annotations have."""

from torchvision.transforms import InterpolationMode

__all__ = ["InterpolationMode"]
