"""Dictionaries trained here: activations harvested once, plain loops over them, SAELens folders out."""
