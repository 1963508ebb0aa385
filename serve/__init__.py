"""The embedding service. It may import mcbeit, and never torch."""
