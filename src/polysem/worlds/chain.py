"""GT7c, two hops: A -> B -> C, and transcoders of it that are right, or write C ahead.

n chains on axes of their own. The stream holds A, sparse and positive; block 1 writes B = ReLU(A - 1/2) along B's axes, block 2
reads B there and writes C = B along C's. So a feature of block 1 that writes both B and C says all outputs with half as many
active features. `trained` fits a cross-layer transcoder by gradient with a price on activations times decoder norms: the dearer
they are, the more of C is written ahead.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polysem.saes.base import Provenance
from polysem.saes.transcoder import Transcoder, TranscoderSet, Writer, made_set, made_transcoder
from polysem.types import Site

HALF = 0.5
READS = (Site(0, "hook_resid_mid"), Site(1, "hook_resid_mid"))
WRITES = (Site(0, "hook_mlp_out"), Site(1, "hook_mlp_out"))


@dataclass(frozen=True)
class Chain:
    """What stands at every site, on sampled positions."""

    n: int
    read: tuple[Float[Tensor, "rows d"], Float[Tensor, "rows d"]]
    written: tuple[Float[Tensor, "rows d"], Float[Tensor, "rows d"]]

    @property
    def seen(self) -> dict[Site, Tensor]:
        """By read site."""
        return dict(zip(READS, self.read, strict=True))

    @property
    def axes(self) -> Float[Tensor, "n d"]:
        """C's axes."""
        return torch.eye(3 * self.n)[2 * self.n :]


def chain_world(*, n: int = 6, rows: int = 2048, density: float = 0.15, seed: int = 0) -> Chain:
    """n chains, each active on a share of positions."""
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(rows, n, generator=g) * 1.5 * (torch.rand(rows, n, generator=g) < density)
    b = torch.relu(a - HALF)
    none = torch.zeros_like(a)
    first, second = torch.cat([a, none, none], 1), torch.cat([a, b, none], 1)
    return Chain(n, (first, second), (torch.cat([none, b, none], 1), torch.cat([none, none, b], 1)))


def compiled(world: Chain, *, ahead: bool) -> TranscoderSet:
    """A cross-layer transcoder that says all outputs exactly: hop by hop, or with C written ahead."""
    n, eye = world.n, torch.eye(3 * world.n)
    A, B, C = eye[:n], eye[n : 2 * n], eye[2 * n :]
    none = torch.zeros_like(B)
    first = (A.T, torch.full((n,), -HALF), B, C if ahead else none)
    second = (B.T, torch.zeros(n), none if ahead else C)
    return _set(first, second)


def per_layer(world: Chain) -> TranscoderSet:
    """Per-layer transcoders that say all outputs exactly; there is one way."""
    made = compiled(world, ahead=False)
    first = made.layers[0]
    own = made_transcoder(
        W_enc=first.W_enc, b_enc=first.encoder.b_enc, writers=first.writers[:1], activation="relu", reads=first.reads,
        model_id=None, provenance=made.provenance,
    )  # fmt: skip
    return made_set([own, made.layers[1]], whole=False, provenance=made.provenance)


def trained(world: Chain, *, price: float, steps: int = 1500, seed: int = 0) -> TranscoderSet:
    """A cross-layer transcoder of twice as many features as chains, fitted with a price on activations."""
    g = torch.Generator().manual_seed(seed)
    d, f = 3 * world.n, 2 * world.n

    def start(*shape: int) -> Tensor:
        return (0.3 * torch.randn(*shape, generator=g)).requires_grad_(True)

    E0, E1, D00, D01, D11 = start(d, f), start(d, f), start(f, d), start(f, d), start(f, d)
    b0, b1 = (torch.zeros(f).requires_grad_(True) for _ in range(2))
    learnt = [E0, E1, b0, b1, D00, D01, D11]
    optimiser = torch.optim.Adam(learnt, lr=1e-2)
    for step in range(steps):
        rows = torch.randint(len(world.read[0]), (512,), generator=g)
        x0, x1, y0, y1 = (part[rows] for part in (*world.read, *world.written))
        f0, f1 = torch.relu(x0 @ E0 + b0), torch.relu(x1 @ E1 + b1)
        error = (f0 @ D00 - y0).square().sum(1) + (f0 @ D01 + f1 @ D11 - y1).square().sum(1)
        size0 = torch.cat([D00, D01], 1).norm(dim=1)
        paid = (f0 * size0).sum(1) + (f1 * D11.norm(dim=1)).sum(1)
        loss = (error + price * min(1.0, 2 * step / steps) * paid).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    E0, E1, b0, b1, D00, D01, D11 = (part.detach() for part in learnt)
    return _set((E0, b0, D00, D01), (E1, b1, D11))


def _set(
    first: tuple[Tensor, Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor]
) -> TranscoderSet:
    origin = Provenance(ref="planted chain", revision="memory", dialect="memory")
    d = first[2].shape[1]
    none = torch.zeros(d)
    layers = [
        made_transcoder(
            W_enc=first[0], b_enc=first[1], writers=[Writer(WRITES[0], first[2], none), Writer(WRITES[1], first[3], none)],
            activation="relu", reads=READS[0], model_id=None, provenance=origin,
        ),
        _second(second, none, origin),
    ]  # fmt: skip
    return made_set(layers, whole=True, provenance=origin)


def _second(parts: tuple[Tensor, Tensor, Tensor], none: Tensor, origin: Provenance) -> Transcoder:
    W_dec = parts[2]
    if not W_dec.any():  # nothing is left to write: a decoder of zeros alone is refused as a damaged file
        W_dec = W_dec + torch.finfo(torch.float32).tiny
    return made_transcoder(
        W_enc=parts[0], b_enc=parts[1], writers=[Writer(WRITES[1], W_dec, none)], activation="relu", reads=READS[1],
        model_id=None, provenance=origin,
    )  # fmt: skip
