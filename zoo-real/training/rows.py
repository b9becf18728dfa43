"""Rows of 128 tokens, BOS in front, of the mixed text: TOKENS-train.npy and TOKENS-held_out.npy.

python rows.py FOLDER TEXT TOKENS
"""

import json
import sys
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

folder, text, out = sys.argv[1:]
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
for part in ("train", "held_out"):
    lines = Path(text, f"{part}.jsonl").read_text(encoding="utf-8").split("\n")
    documents = [json.loads(line)["text"] + "\n" for line in lines if line.strip()]
    ids = tokenizer(documents, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    stream = np.concatenate([np.array(row, dtype=np.int32) for row in ids])
    n = len(stream) // 127
    rows = stream[: n * 127].reshape(n, 127)
    rows = np.concatenate([np.full((n, 1), tokenizer.bos_token_id, np.int32), rows], axis=1)
    np.save(f"{out}-{part}.npy", rows)
    print(part, rows.shape)
