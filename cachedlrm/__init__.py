"""Trains deep learning recommendation models whose embedding tables are far larger than the GPU."""

__version__ = "0.1.0"
