"""GT3, the planted readout LM: a model whose pair effects are chosen, with every trap that fools an estimate.

Unit directions d_i in R^d lean on one common axis by |N(0, common)|; logits are linear in the last token's
residual. A feature's tokens read kappa_j [(1 - lambda) d_j + lambda dual_j], with dual_j . d_i = 1[i = j], plus
own routes sum_i eta_ij dual_i. Pushing d_i by alpha therefore moves the logits of j's tokens by

    alpha (kappa_j [(1 - lambda) G_ij + lambda 1[i = j]] + eta_ij)

exactly, and their log-odds by that minus B_i, the shift that the softmax takes away because it is everybody's
(validity document, section 3.5). kappa is log-normal: potency differs between targets and is no interference.
Duplicates are copies of a feature's direction under another gloss; leaks are tokens of a target set that
belong to a source. Cost: milliseconds.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int

from polysem.features import FeatureTable
from polysem.geometry.unit import unit_rows
from polysem.saes.base import SAE
from polysem.seeds import rng_for
from polysem.worlds.linear import SITE, LinearWorld
from polysem.worlds.tables import FeatureRow, WorldTables, feature_table, plain_sae, random_prompts

LABEL = "readout"
TOKENS = 3
"""tokens of a feature; token 0 is BOS"""
FILLERS = 200
"""tokens that belong to no feature"""


@dataclass(frozen=True)
class ReadoutTruth:
    """What was planted."""

    directions: Float[np.ndarray, "n d"]
    """unit"""
    gram: Float[np.ndarray, "n n"]
    kappa: Float[np.ndarray, " n"]
    compensation: float
    """lambda"""
    routes: Float[np.ndarray, "n n"] = field(repr=False)
    """eta[j, i]: effect on target j of source i, in logits per unit, that is no part of the angle"""
    tokens: Int[np.ndarray, "n tokens"] = field(repr=False)
    W_U: Float[np.ndarray, "d_vocab d"] = field(repr=False)
    axis: Float[np.ndarray, " d"] = field(repr=False)
    """the common mode"""
    duplicates: tuple[tuple[int, int], ...] = ()
    """(original, copy)"""
    leaks: tuple[tuple[int, int], ...] = ()
    """(target, source) that share tokens"""
    leak_gain: float = 0.0

    def logit_shift(self) -> Float[np.ndarray, "n n"]:
        """[target, source]: shift of the target's own tokens per unit pushed, exact. Leaked tokens apart."""
        reading = (1 - self.compensation) * self.gram + self.compensation * np.eye(len(self.gram))
        return self.kappa[:, None] * reading + self.routes

    def odd_effect(
        self, logits: Float[np.ndarray, "prompts d_vocab"], dose: float
    ) -> Float[np.ndarray, "n n"]:
        """[target, source]: odd part of the change in log-odds at +-dose, mean over prompts: the softmax taken
        token by token, by no formula of the library."""
        n = len(self.directions)
        targets, sources = np.divmod(np.arange(n * n), n)
        found = self.odd_effect_of(logits, dose * self.directions, targets, sources)
        return found.reshape(n, n)

    def odd_effect_of(
        self,
        logits: Float[np.ndarray, "prompts d_vocab"],
        vectors: Float[np.ndarray, "n d"],
        targets: Int[np.ndarray, " rows"],
        pushed: Int[np.ndarray, " rows"] | None = None,
    ) -> Float[np.ndarray, " rows"]:
        """The same for any vectors that are added: row k reads the tokens of targets[k] under vectors[pushed[k]]
        (None: vectors[k])."""
        which = np.arange(len(vectors)) if pushed is None else pushed
        shift = self.W_U @ vectors.T
        sides = []
        for sign in (1.0, -1.0):
            moved = logits[:, :, None] + sign * shift[None]
            weight = np.exp(moved - moved.max(axis=1, keepdims=True))
            inside = weight[:, self.tokens[targets], which[:, None]].sum(axis=-1)
            sides.append(np.log(inside / (weight.sum(axis=1)[:, which] - inside)))
        return ((sides[0] - sides[1]) / 2).mean(axis=0)


@dataclass(frozen=True)
class ReadoutWorld:
    """The parts of the world, and its truth."""

    model: LinearWorld
    sae: SAE
    features: FeatureTable
    prompts: pa.Table
    truth: ReadoutTruth

    @property
    def parts(self) -> WorldTables:
        return WorldTables(self.model, {LABEL: self.sae}, self.features, self.prompts)

    def base_logits(self, split: str = "confirm") -> Float[np.ndarray, "prompts d_vocab"]:
        """Unedited last-position logits of the prompts of a split, straight from the weights."""
        last = [row["token_ids"][-1] for row in self.prompts.to_pylist() if row["split"] == split]
        return (self.model.W_E[last] @ self.model.W_U.T).double().numpy()


def readout_world(
    *,
    n_features: int = 128,
    d: int = 256,
    common: float = 0.6,
    compensation: float = 0.0,
    potency_sd: float = 0.5,
    gain: float = 2.0,
    route_share: float = 0.0,
    route: float = 1.0,
    axis_gain: float = 0.0,
    duplicates: int = 0,
    leaks: int = 0,
    leak_gain: float = 0.0,
    n_prompts: int = 4,
    rotation_seed: int | None = None,
    seed: int = 0,
) -> ReadoutWorld:
    """A planted readout LM.

    Args:
        n_features: features with own directions, at most d - duplicates.
        d: width of the residual stream.
        common: scale of the half-normal weight of the common axis in every direction; 0 for none.
        compensation: lambda in [0, 1]: 0 lets interference through, 1 cancels it exactly.
        potency_sd: standard deviation of log kappa.
        gain: median kappa, logits per unit.
        route_share: share of ordered pairs with a route of their own.
        route: its strength, logits per unit.
        axis_gain: how strongly tokens of no feature read the common axis, logits per unit: pushing along it
            lowers every target alike, because the softmax gives the probability to those tokens.
        duplicates: how many features get a copy: half by angle (cosine 0.9), half by tokens (cosine 0.45).
        leaks: how many targets share one token with one source.
        leak_gain: what that source adds to the shared token, logits per unit.
        n_prompts: half of each split.
        rotation_seed: of an orthogonal change of basis of the residual stream; None keeps the basis.
    """
    if n_features + duplicates > d:
        raise ValueError(
            f"{n_features} features and {duplicates} copies have no dual basis in {d} dimensions"
        )
    rng = rng_for(seed, "readout world")
    axis = np.eye(d)[0]
    directions = rng.standard_normal((n_features, d)) * (1 - axis)
    directions = unit_rows(unit_rows(directions) + np.abs(rng.normal(0, common, (n_features, 1))) * axis)
    copies, directions = _with_copies(directions, duplicates, rng)
    n = len(directions)
    kappa = gain * np.exp(rng.normal(0, potency_sd, n))
    routes = route * (rng.random((n, n)) < route_share)
    np.fill_diagonal(routes, 0.0)
    leaking = tuple((k, n_features - 1 - k) for k in range(leaks))

    tokens = 1 + np.arange(n * TOKENS).reshape(n, TOKENS)
    d_vocab = 1 + n * TOKENS + FILLERS
    if rotation_seed is not None:
        turn = np.linalg.qr(rng_for(rotation_seed, "rotation").standard_normal((d, d)))[0]
        axis, directions = axis @ turn, directions @ turn
    else:
        turn = np.eye(d)
    dual = np.linalg.pinv(directions).T
    rows = kappa[:, None] * ((1 - compensation) * directions + compensation * dual) + routes @ dual
    W_U = np.zeros((d_vocab, d))
    W_U[tokens] = rows[:, None, :]
    W_U[1 + n * TOKENS :] += axis_gain * axis
    for target, source in leaking:
        W_U[tokens[target, 0]] += leak_gain * dual[source]
    W_E = unit_rows(rng.standard_normal((d_vocab, d))) @ turn
    for original, copy in copies[1::2]:
        tokens[copy, : TOKENS - 1] = tokens[original, : TOKENS - 1]
    for target, source in leaking:
        # The shared token means the same to both: its embedding lies with the source's own tokens.
        W_E[tokens[target, 0]] = unit_rows(W_E[tokens[source, 0]] + 0.3 * W_E[tokens[target, 0]])
    truth = ReadoutTruth(
        directions=directions,
        gram=directions @ directions.T,
        kappa=kappa,
        compensation=compensation,
        routes=routes,
        tokens=tokens,
        W_U=W_U,
        axis=axis,
        duplicates=copies,
        leaks=leaking,
        leak_gain=leak_gain,
    )
    return _assembled(truth, W_E, dual, n_prompts, rng)


def _with_copies(
    directions: np.ndarray, duplicates: int, rng: np.random.Generator
) -> tuple[tuple[tuple[int, int], ...], np.ndarray]:
    """Copies of the first features, alternately at cosine 0.9 and 0.45."""
    originals = directions[:duplicates]
    noise = rng.standard_normal(originals.shape)
    noise = unit_rows(noise - (noise * originals).sum(1, keepdims=True) * originals)
    cosine = np.where(np.arange(duplicates) % 2 == 0, 0.9, 0.45)[:, None]
    made = cosine * originals + np.sqrt(1 - cosine**2) * noise
    pairs = tuple((k, len(directions) + k) for k in range(duplicates))
    return pairs, np.concatenate([directions, made])


def _assembled(
    truth: ReadoutTruth, W_E: np.ndarray, dual: np.ndarray, n_prompts: int, rng: np.random.Generator
) -> ReadoutWorld:
    n = len(truth.directions)
    # Decoder norms differ, as they do in SAEs without a norm constraint; the encoder is the dual basis, so that
    # encoder and decoder are not each other's transpose.
    norms = rng.uniform(0.8, 1.2, size=(n, 1))
    sae = plain_sae(truth.directions * norms)
    sae = replace_encoder(sae, dual / norms)
    densities = rng.uniform(1e-3, 2e-2, size=n)
    rows = [
        FeatureRow(truth.tokens[k].tolist(), truth.tokens[k].tolist(), f"feature {k}", float(densities[k]))
        for k in range(n)
    ]
    embeddings = unit_rows(rng.standard_normal((n, 512)))
    table = feature_table(LABEL, rows, site=SITE, W_dec=sae.W_dec.double().numpy(), embeddings=embeddings)
    model = LinearWorld(torch.tensor(W_E), torch.tensor(truth.W_U))
    return ReadoutWorld(model, sae, table, random_prompts(n_prompts, len(W_E), rng), truth)


def replace_encoder(sae: SAE, rows: Float[np.ndarray, "d_sae d_in"]) -> SAE:
    """The SAE with these encoder rows."""
    from dataclasses import replace

    return replace(sae, W_enc=torch.tensor(rows.T.copy(), dtype=torch.float32))


def identity_pairs(truth: ReadoutTruth) -> Bool[np.ndarray, "n n"]:
    """[target, source]: the pairs with a route of their own."""
    return truth.routes != 0
