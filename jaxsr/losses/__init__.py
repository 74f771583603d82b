"""Losses that several recipes share, of one subject a file, of arrays `[B, H, W, C]`: scalars, or one value a slice, `[B]`.

All are computed in float32 whatever comes in, and every norm is a mean over all entries (ruling of the specification), so that values do
not depend on batch or image size.
"""
