"""Sequence and channel mixers, one a file; `table` lists them."""
