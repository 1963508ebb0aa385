"""Pictures of what features see: PCA colours, similar patches, neighbours. No torch: encoders come from outside."""

from mcbeit.viz.drawing import draw_neighbours, draw_pca, draw_similarity
from mcbeit.viz.images import find_images, spread

__all__ = ["draw_neighbours", "draw_pca", "draw_similarity", "find_images", "spread"]
