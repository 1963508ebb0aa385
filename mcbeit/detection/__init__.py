"""Finding objects and their outlines: Mask R-CNN on a BEiT backbone, as mc-BEiT's COCO numbers are measured."""
