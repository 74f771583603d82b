"""Weights in files of their own."""
