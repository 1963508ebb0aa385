"""Downstream judgement of a backbone: one file per task or report."""
