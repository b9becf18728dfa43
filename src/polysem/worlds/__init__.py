"""Synthetic worlds with known truth, behind the same seams as a real model and SAE.

Each world is a function that gives its parts (a model, an SAE, tables) and a frozen `truth`: the numbers that
an instrument pointed at it must read. docs/worlds.md says what each plants and why; `polysem selftest` points
the instrument.
"""
