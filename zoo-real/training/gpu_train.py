"""Train all dictionaries on a GPU from a folder of `gpu_pack.py`: as run, once, for what this package holds.

    python gpu_train.py PACK OUT [--seconds 26]

Needs torch, transformers, safetensors, and the packages gguf and polysem (of which only `polysem.training`) on the
path. Weights are dequantised from the file's own bytes, the model is run up to the last site in float32, and the
loop of `polysem.training.fit` takes as many steps as fit the seconds given to each dictionary.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from gguf import quants
from gguf.constants import GGMLQuantizationType
from safetensors.torch import save_file

from polysem.training.fit import TrainingRecipe, finished, measure, start, train

MASSIVE = 3.0
"""times the median norm, for training and for the cards; 10 is the default today"""
ap = argparse.ArgumentParser()
ap.add_argument("pack", type=Path)
ap.add_argument("out", type=Path)
ap.add_argument("--device", default="cuda")
ap.add_argument("--rows", type=int, default=10**9)
ap.add_argument("--seconds", type=float, default=30)
ap.add_argument("--steps", type=int, default=0)
ap.add_argument("--jobs", default="")
ap.add_argument("--batch", type=int, default=4096)
A = ap.parse_args()
dev = A.device
A.out.mkdir(parents=True, exist_ok=True)
T0 = time.time()


def say(*a):
    print(f"[{time.time() - T0:6.1f}]", *a, flush=True)


M = json.loads((A.pack / "meta.json").read_text())
blob = (A.pack / "w.0").read_bytes() + (A.pack / "w.1").read_bytes()
c = dict(M["config"])
kind = c["model_type"]
gem = kind.startswith("gemma")
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    **(
        {
            "ffn_norm": "pre_feedforward_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
        }
        if gem
        else {"ffn_norm": "post_attention_layernorm"}
    ),
}


def permute(w, heads):  # undoes the head layout that the format uses for Llama
    d = w.shape[0] // heads // 2
    return w.reshape(heads, d, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


sd = {}
for t in M["tensors"]:
    raw = (
        np.frombuffer(blob, dtype=np.uint8, count=t["n"], offset=t["at"]).view(t["dtype"]).reshape(t["shape"])
    )
    w = np.asarray(quants.dequantize(raw, GGMLQuantizationType(t["type"])), dtype=np.float32)
    if t["name"] == "token_embd.weight":
        sd["embed_tokens.weight"] = torch.from_numpy(w.copy())
        continue
    _, n, k, _ = t["name"].split(".")
    if not gem and k == "attn_q":
        w = permute(w, c["num_attention_heads"])
    if not gem and k == "attn_k":
        w = permute(w, c["num_key_value_heads"])
    if gem and k.endswith("norm"):
        w = w - 1
    sd[f"layers.{n}.{NAMES[k]}.weight"] = torch.from_numpy(w.copy())
d = c["hidden_size"]
sd["norm.weight"] = torch.ones(d)
from transformers import AutoConfig, AutoModel

for k in ("dtype", "torch_dtype", "architectures", "transformers_version", "_name_or_path"):
    c.pop(k, None)
c.pop("model_type")
cfg = AutoConfig.for_model(kind, **c)
cfg._attn_implementation = "sdpa"
model = AutoModel.from_config(cfg, dtype=torch.float32)
print(type(model).__name__)
model.load_state_dict(sd, strict=True)
model = model.to(dev).eval().requires_grad_(False)
if torch.cuda.is_available():
    say(torch.cuda.get_device_name(), torch.__version__)
say("model ready")
L = M["config"]["num_hidden_layers"]
if gem:
    SITES = {f"blocks.{L - 1}.hook_resid_post": (f"layers.{L - 1}",)}
else:
    SITES = {f"blocks.{n}.hook_resid_post": (f"layers.{n}",) for n in (4, 14, 24)} | {
        "blocks.14.mlp.hook_in": ("layers.14.post_attention_layernorm",),
        "blocks.14.hook_mlp_out": ("layers.14.mlp",),
    }
got = {}
BIG = {}


def hook(s):
    def f(m, i, o):
        got[s] = o[0] if isinstance(o, tuple) else o

    return f


for s, (p,) in SITES.items():
    model.get_submodule(p).register_forward_hook(hook(s))
ctx = M["context"]


def load(part):
    return torch.from_numpy(
        np.fromfile(A.pack / f"{part}.u16", dtype=np.uint16).astype(np.int64).reshape(-1, ctx)
    )[: A.rows]


def harvest(tok):
    n = len(tok) * (ctx - 1)
    X = {s: torch.empty(n, d, dtype=torch.float16, device=dev) for s in SITES}
    B = 256 if dev != "cpu" else 16
    with torch.no_grad():
        for i in range(0, len(tok), B):
            model(input_ids=tok[i : i + B].to(dev), use_cache=False)
            for s in SITES:
                h = got[s][:, 1:].reshape(-1, d)
                BIG[s] = max(BIG.get(s, 0.0), float(h.abs().max()))
                h = h.clamp(-65504, 65504)
                X[s][i * (ctx - 1) : i * (ctx - 1) + len(h)] = h.half()
    return X


X = harvest(load("train"))
say("harvest", {s: tuple(x.shape) for s, x in X.items()})
H = harvest(load("held_out"))
say("held out; largest", BIG)
save_file({s: x[:508].cpu() for s, x in X.items()}, A.out / "check.safetensors")
model.cpu()  # its memory goes to the dictionaries
torch.backends.cuda.matmul.allow_tf32 = True


def r(n):
    return f"blocks.{n}.hook_resid_post"


if gem:
    JOBS = {
        "gemma-5120": (r(L - 1), r(L - 1), {"d_sae": 5120}),
        "gemma-2560": (r(L - 1), r(L - 1), {"d_sae": 2560}),
    }
else:
    tc = ("blocks.14.mlp.hook_in", "blocks.14.hook_mlp_out")
    nest = {"select": "batchtopk"}
    JOBS = {
        "r14": (r(14), r(14), {}),
        "r4": (r(4), r(4), {}),
        "r24": (r(24), r(24), {}),
        "r14-seed1": (r(14), r(14), {"seed": 1}),
        "r14-matryoshka": (r(14), r(14), {"select": "batchtopk", "prefixes": (288, 576, 1152, 2304)}),
        "tc14-2304": (*tc, {"select": "batchtopk", "skip": True, "d_sae": 2304}),
        "r14-matryoshka-2304": (
            r(14),
            r(14),
            {"select": "batchtopk", "prefixes": (144, 288, 576, 1152), "d_sae": 2304},
        ),
        "tc14": (*tc, {"select": "batchtopk", "skip": True}),
    }
if A.jobs:
    JOBS = {k: v for k, v in JOBS.items() if k in A.jobs.split(",")}


def evaluate(w, x, y, s, R):
    fired = torch.zeros(R.d_sae, dtype=torch.bool, device=dev)
    l0 = 0.0
    E = []
    for i in range(0, len(x), 8192):
        a = x[i : i + 8192].float()
        b = y[i : i + 8192].float()
        pre = a @ w["W_enc"] + w["b_enc"]
        if "threshold" in w:
            acts = pre * (pre > w["threshold"])
        else:
            v, ix = pre.topk(R.k)
            acts = torch.zeros_like(pre).scatter(1, ix, v.relu())
        out = acts @ w["W_dec"] + w["b_dec"]
        if "W_skip" in w:
            out = out + a @ w["W_skip"].T
        E.append((b - out).pow(2).sum(1))
        fired |= (acts > 0).any(0)
        l0 += float((acts > 0).sum())
    E = torch.cat(E)
    y = y.float()
    us = ~((x.float().norm(dim=1) > MASSIVE * s.read_median) | (y.norm(dim=1) > MASSIVE * s.write_median))

    def V(m):
        return (y[m] - y[m].mean(0)).pow(2).sum()

    al = torch.ones_like(us)
    return {
        "fvu": float(E[us].sum() / V(us)),
        "fvu_all": float(E.sum() / V(al)),
        "l0": l0 / len(x),
        "silent_held_out": float((~fired).float().mean()),
        "ordinary_share": float(us.float().mean()),
        "n_held_out": len(x),
    }


cards = {}
for name, (a, b, kw) in JOBS.items():
    x, y = X[a], X[b]
    same = a == b
    B = A.batch
    n = len(x) // B
    g = torch.Generator(device=dev).manual_seed(12345)
    samp = torch.randperm(len(x), generator=g, device=dev)[:131072]
    s = measure(x[samp], y[samp], times=MASSIVE)

    def batches(step):
        while True:
            gg = torch.Generator(device=dev).manual_seed(1000 * kw.get("seed", 0) + step // n)
            o = torch.randperm(len(x), generator=gg, device=dev)
            for i in range(step % n, n):
                t = x[o[i * B : (i + 1) * B]]
                yield (t, t) if same else (t, y[o[i * B : (i + 1) * B]])
                step += 1

    if A.steps:
        steps = A.steps
    else:
        R = TrainingRecipe(steps=10**6, batch=B, lr=1e-3, massive=MASSIVE, **kw)
        st = start(R, s, d_in=d, autoencoder=same)
        clock = {}

        def cal(st, log):
            if st.step in (20, 120):
                torch.cuda.synchronize()
                clock[st.step] = time.time()
            if st.step == 120:
                raise StopIteration

        try:
            train(R, s, st, batches, each=cal)
        except (StopIteration, RuntimeError) as e:
            print(repr(e)[:100])
        per = (clock[120] - clock[20]) / 100
        steps = int(min(12500, max(1500, A.seconds / per)))
        say(name, f"{per * 1e3:.2f} ms/step -> {steps} steps")
    R = TrainingRecipe(steps=steps, batch=B, lr=8e-4, massive=MASSIVE, **kw)
    st = start(R, s, d_in=d, autoencoder=same)
    t = time.time()

    def each(st, log):
        if log and (st.step % 1000 == 0 or st.step == steps or st.step == 50):
            say(name, st.step, log)

    try:
        train(R, s, st, batches, each=each)
    except torch.OutOfMemoryError as e:
        say(name, "OOM", e)
        continue
    w = finished(R, s, st)
    took = time.time() - t
    w = {k: v.half().to(dev) for k, v in w.items()}
    ev = evaluate({k: v.float() for k, v in w.items()}, H[a], H[b], s, R)
    card = dict(
        ev,
        name=name,
        reads=a,
        writes=b,
        dead=float((st.since_fired > R.dead_after).float().mean()),
        tokens_unique=len(x),
        tokens_seen=steps * B,
        steps=steps,
        batch=B,
        lr=R.lr,
        k=R.k,
        select=R.select,
        prefixes=R.prefixes,
        skip=R.skip,
        seed=R.seed,
        d_sae=R.d_sae,
        seconds=took,
        read_median=s.read_median,
        write_median=s.write_median,
        mean_norm=s.read,
        device=torch.cuda.get_device_name() if dev != "cpu" else "cpu",
        torch=torch.__version__,
    )
    save_file({k: v.cpu().contiguous() for k, v in w.items()}, A.out / f"{name}.tmp")
    os.rename(A.out / f"{name}.tmp", A.out / f"{name}.safetensors")
    (A.out / f"{name}.json").write_text(json.dumps(card))
    say(json.dumps(card))
say("DONE")
(A.out / "done").write_text("x")
