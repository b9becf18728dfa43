"""Pack what a GPU without network needs: the blocks of a GGUF file below a layer, the embedding rows in use, tokens.

    python gpu_pack.py FILE.gguf FOLDER TOKENS N_BLOCKS OUT

FOLDER is the converted model (its config.json); TOKENS is the beginning of two names, TOKENS-train.npy and
TOKENS-held_out.npy, rows [n, 128] of token ids with BOS in front. Weights stay quantised, in two halves.
"""

import json
import pathlib
import sys

import gguf
import numpy as np

ggufp, folder, tokpre, nb, out = (
    sys.argv[1],
    sys.argv[2],
    sys.argv[3],
    int(sys.argv[4]),
    pathlib.Path(sys.argv[5]),
)
out.mkdir(parents=True, exist_ok=True)
T = {p: np.load(f"{tokpre}-{p}.npy") for p in ("train", "held_out")}
used = np.unique(np.concatenate([t.ravel() for t in T.values()]))
print("used", len(used))
assert len(used) < 65536
for p, t in T.items():
    np.searchsorted(used, t).astype(np.uint16).tofile(out / f"{p}.u16")
r = gguf.GGUFReader(ggufp)
meta = []
blob = bytearray()
for t in r.tensors:
    if t.name.startswith("blk.") and int(t.name.split(".")[1]) < nb:
        raw = t.data
    elif t.name == "token_embd.weight":
        raw = t.data[used]
    else:
        continue
    raw = np.ascontiguousarray(raw)
    meta.append(
        {
            "name": t.name,
            "type": int(t.tensor_type),
            "shape": list(raw.shape),
            "dtype": str(raw.dtype),
            "at": len(blob),
            "n": raw.nbytes,
        }
    )
    blob += raw.tobytes()
c = json.loads(pathlib.Path(folder, "config.json").read_text())
c["num_hidden_layers"] = nb
c["vocab_size"] = len(used)
for k in ("pad_token_id", "bos_token_id", "eos_token_id"):
    c[k] = None
if "layer_types" in c:
    c["layer_types"] = c["layer_types"][:nb]
(out / "meta.json").write_text(json.dumps({"tensors": meta, "config": c, "context": 128}))
half = (len(blob) + 1) // 2
(out / "w.0").write_bytes(blob[:half])
(out / "w.1").write_bytes(blob[half:])
print(len(blob) / 1e6)
