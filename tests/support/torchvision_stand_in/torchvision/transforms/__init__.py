"""Names that transformers imports."""

from enum import Enum

InterpolationMode = Enum("InterpolationMode", "NEAREST_EXACT BOX BILINEAR HAMMING BICUBIC LANCZOS")
