"""The door for everything that this package did not write: files, texts, tensors, paths and addresses.

What comes in is bounded (bytes, unpacked bytes, depth, digits, tensor sizes), is read without running code, and is what it
says. What does not hold becomes one of polysem's own errors, with the file, the value seen and the next step. No other
module parses a foreign file; `tests/house/test_boundary.py` holds the tree to that.

    door      Door: how a kind of file is called in errors, and which error
    files     paths, bytes, unpacked bytes, files that stay the same while they are read
    text      decoded text, JSON, JSON lines, TOML, tables of cells
    tensors   safetensors, npz, torch files, always copied out of the file
    settings  one value of a configuration, by type; model configurations
"""
