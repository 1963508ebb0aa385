"""Judging a pretraining run: `mcbeit report`."""
