"""mc-BEiT: self-supervised visual features from your own images."""

__version__ = "0.1.0"
