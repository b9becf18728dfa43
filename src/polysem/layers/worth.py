"""What an edge is worth, in nats.

Effectiveness of i -> j (Anthropic 2026, "Characterizing interference weights"): to second order the KL that the edge makes,

    0.5 E[ (df_j)^2 Var_p(v_j) ],   df_j = f_j - act(pre_j - a_i weight[i, j]),   Var_p(v) = sum p v^2 - (sum p v)^2

with the target's own rule as act (of top-k with its real barrier) and v_j the direct effect of j on logits, through the
final norm with its scale frozen. Of i -> token: v is the token's own logit, so Var_p = p (1 - p).

Helpfulness: by how much the loss on the text would rise without the edge. For tokens in closed form,

    E[ log(1 - p (1 - exp(-a w))) + a w 1(next = token) ]

for features by taking df_j of what j writes away at positions where the edge acts (path patch), on a sample, the loss summed
from there to the end of the row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polysem.edits import Edit
from polysem.errors import MismatchError
from polysem.layers.coactivity import Pass
from polysem.layers.ends import Ends
from polysem.layers.influence import Events
from polysem.layers.steer import written_push
from polysem.layers.weights import VirtualWeights
from polysem.models.base import WhiteBoxModel
from polysem.progress import SILENT, Reporter

ROWS = 64
MOST_TOKENS = 8192
"""positions of the corpus, in rows drawn at random, on which effectiveness is measured"""


@dataclass(frozen=True)
class Readings:
    """What is needed at some positions of the corpus to judge edges: each row of text is run once, for all edges."""

    place: Int[np.ndarray, "n_rows pos"]
    """number of every position among the readings; -1 where there is none"""
    x: Mapping[str, Float[Tensor, "n _d"]]
    """what stands where each target reads"""
    variance: Mapping[str, Float[Tensor, "n _targets"]]
    """Var_p of the direct effect of each of its targets on logits"""
    p: Float[Tensor, "n n_tokens"]
    """next-token probability of the tokens asked for"""
    following: Int[Tensor, " n"]
    """the text's next token; -1 at the end of a row"""
    document: Int[np.ndarray, " n"]

    def of(
        self, seen: Pass, label: str, feature: int
    ) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"], float]:
        """(readings at which a feature fires, its activation there, share of the corpus's tokens on which it fires)."""
        row, position, value = seen.active[label].of(feature, seen.counted)
        at = self.place[row, position]
        return at[at >= 0], value[at >= 0], len(row) / max(1, int(seen.counted.sum()))


def readings(
    model: WhiteBoxModel,
    seen: Pass,
    wanted: Sequence[tuple[Ends, Int[np.ndarray, " _k"]]],
    columns: Float[Tensor, "d_vocab d"],
    *,
    tokens: Sequence[int] = (),
    rng: np.random.Generator,
    reporter: Reporter = SILENT,
) -> Readings:
    """Run rows of the corpus once and keep what edges are judged by.

    Args:
        wanted: target dictionaries, and which of their features.
        columns: what logits read of the stream behind the last block.
        tokens: whose probability is kept.
    """
    n_rows, n_pos = seen.counted.shape
    order = rng.permutation(n_rows)
    enough = int(np.searchsorted(np.cumsum(seen.counted[order].sum(1)), MOST_TOKENS)) + 1
    rows = np.sort(order[:enough])
    effects = {one.label: logit_effects(one, which, columns) for one, which in wanted}
    x: dict[str, list[Tensor]] = {one.label: [] for one, _ in wanted}
    variance: dict[str, list[Tensor]] = {one.label: [] for one, _ in wanted}
    probabilities, following, documents = [], [], []
    place = np.full((n_rows, n_pos), -1, dtype=np.int64)
    starts, count, sites = range(0, len(rows), ROWS), 0, sorted({one.reads for one, _ in wanted})
    for at in reporter.track(starts, total=len(starts), label="readings"):
        some = rows[at : at + ROWS]
        ids = torch.from_numpy(seen.rows.tokens[some].astype(np.int64))
        kept = seen.counted[some]
        here = torch.from_numpy(kept)
        n = int(kept.sum())
        place[some] = np.where(kept, count + np.cumsum(kept).reshape(kept.shape) - 1, -1)
        count += n
        on_device = ids.to(model.spec.device)
        p = model.logits(on_device).float().cpu()[here].softmax(-1)
        stream = model.capture(on_device, sites) if sites else {}
        for one, _ in wanted:
            x[one.label].append(stream[one.reads].float().cpu()[here])
            v = effects[one.label].T
            variance[one.label].append((p @ v.square() - (p @ v).square()).clamp(min=0))
        probabilities.append(p[:, list(tokens)])
        following.append(torch.cat([ids[:, 1:], torch.full((len(ids), 1), -1)], 1)[here])
        documents.append(seen.document[some][kept])
    return Readings(
        place, {k: torch.cat(v) for k, v in x.items()}, {k: torch.cat(v) for k, v in variance.items()},
        torch.cat(probabilities), torch.cat(following), np.concatenate(documents),
    )  # fmt: skip


@dataclass(frozen=True)
class Worth:
    """Effectiveness of edges from some sources to some targets."""

    nats: Float[np.ndarray, "n_sources n_targets"]
    """a token of the corpus"""
    acts: Float[np.ndarray, "n_sources n_targets"]
    """share of the corpus's tokens on which the edge changes the target"""
    n_tokens: Int[np.ndarray, " n_sources"]
    """tokens looked at, on which the source fires"""


@dataclass(frozen=True)
class Helpful:
    """Losses that an edge saves, event by event."""

    edge: Int[np.ndarray, " events"]
    document: Int[np.ndarray, " events"]
    saved: Float[np.ndarray, " events"]
    """nats: loss from the event to the end of the row without the edge, less with it"""


def without(
    target: Ends,
    pre: Float[Tensor, "n d_sae"],
    change: Float[Tensor, "n k"],
    which: Int[Tensor, " k"],
) -> Float[Tensor, "n k"]:
    """Activations of some targets if only their own pre-activation were less by `change`, the others as they are.

    Raises:
        MismatchError: a rule that is neither relu, topk nor jumprelu.
    """
    sae = target.encoder
    less = pre[:, which] - change
    match sae.activation:
        case "relu":
            return torch.relu(less)
        case "jumprelu":
            assert sae.threshold is not None
            return torch.relu(less) * (less > sae.threshold[which])
        case "topk":
            assert sae.k is not None
            best = pre.topk(min(sae.k + 1, pre.shape[1]), dim=1).values
            inside, outside = best[:, sae.k - 1 : sae.k], best[:, -1:]
            # what a target must pass is the k-th largest of the others
            barrier = torch.where(pre[:, which] >= inside, outside, inside)
            return torch.relu(less) * (less > barrier)
        case _:
            raise MismatchError(f"{target.label} is {sae.activation}; expected relu, topk or jumprelu")


def logit_effects(
    target: Ends, targets: Int[np.ndarray, " k"], columns: Float[Tensor, "d_vocab d"]
) -> Float[Tensor, "k d_vocab"]:
    """Direct effect of a unit of each target on all logits."""
    rows = torch.stack([own[torch.as_tensor(targets)] for own in target.rows.values()]).sum(0)
    return rows.float() @ columns.T


def effectiveness(
    seen: Pass,
    read: Readings,
    source: Ends,
    target: Ends,
    weights: VirtualWeights,
    *,
    sources: Sequence[int],
    targets: Int[np.ndarray, " n_targets"],
) -> Worth:
    """Effectiveness of all edges from some sources.

    Args:
        read: at which positions; of these targets.
        source: dictionary of the sources.
        target: dictionary of the targets.
        targets: features, those of the readings.
    """
    which = torch.as_tensor(targets)
    nats, acts = (np.zeros((len(sources), len(targets))) for _ in range(2))
    looked = np.zeros(len(sources), dtype=np.int64)
    for k, feature in enumerate(sources):
        at, value, rate = read.of(seen, source.label, feature)
        looked[k] = len(at)
        if not len(at):
            continue
        df = edge_changes(target, read.x[target.label][at], value, weights.of([feature], targets)[0], which)
        nats[k] = rate * 0.5 * (df.square() * read.variance[target.label][at]).double().mean(0).numpy()
        acts[k] = rate * (df != 0).double().mean(0).numpy()
    return Worth(nats, acts, looked)


def edge_changes(
    target: Ends,
    x: Float[Tensor, "n d_in"],
    value: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " k"],
    which: Int[Tensor, " k"],
) -> Float[Tensor, "n k"]:
    """What each target's activation owes to an edge: with it, less without it."""
    pre = target.pre(x)
    push = torch.from_numpy(value).float()[:, None] * torch.from_numpy(np.asarray(weight)).float()
    return target.encoder.encode(x).detach()[:, which] - without(target, pre, push, which)


def helpful_features(
    model: WhiteBoxModel,
    seen: Pass,
    read: Readings,
    source: Ends,
    target: Ends,
    weights: VirtualWeights,
    *,
    edges: Sequence[tuple[int, int]],
    n_events: int,
    rng: np.random.Generator,
    reporter: Reporter = SILENT,
) -> Helpful:
    """Take edges away where they act, and see what the text's loss does.

    Args:
        read: at which positions edges are looked for; of the targets.
        source: dictionary of the sources.
        target: dictionary of the targets.
        edges: (source, target).
        n_events: positions of each, at most; drawn among those where the edge changes its target.
    """
    found: list[Events] = []
    where_of = np.argwhere(read.place >= 0)
    where_of = where_of[np.argsort(read.place[tuple(where_of.T)], kind="stable")]
    for k, (i, j) in enumerate(edges):
        at, value, _ = read.of(seen, source.label, i)
        if not len(at):
            continue
        weight = weights.of([i], np.array([j]))[0]
        df = edge_changes(target, read.x[target.label][at], value, weight, torch.tensor([j]))[:, 0]
        acting = np.flatnonzero(df.numpy() != 0)
        chosen = rng.permutation(acting)[:n_events]
        row, position = where_of[at[chosen]].T
        found.append(Events(np.full(len(chosen), k), row, position, df.numpy()[chosen]))
    events, saved = Events.joined(found), [np.empty(0)]
    for some, tokens, mask in events.batches(model, seen, reporter, "edges"):
        amounts = torch.from_numpy(-some.value).float()
        edits = written_push(target, [edges[k][1] for k in some.of], amounts, mask)
        with_it, less = (_losses(model, tokens, e, torch.from_numpy(some.position)) for e in ([], edits))
        saved.append((less - with_it).numpy())
    return Helpful(events.of, events.documents(seen), np.concatenate(saved))


def token_weights(
    source: Ends, feature: int, columns: Float[Tensor, "d_vocab d"], most: int
) -> tuple[Int[np.ndarray, " most"], Float[np.ndarray, " most"]]:
    """A feature's largest direct weights to tokens: (ids, weights), the largest first."""
    weight = (torch.stack([own[feature] for own in source.rows.values()]).sum(0).float() @ columns.T).double()
    tokens = torch.argsort(weight.abs(), descending=True, stable=True)[:most]
    return tokens.numpy(), weight[tokens].numpy()


def token_worth(
    seen: Pass,
    read: Readings,
    source: Ends,
    feature: int,
    *,
    tokens: Int[np.ndarray, " k"],
    weight: Float[np.ndarray, " k"],
    p: Float[Tensor, "n k"],
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "m k"], Int[np.ndarray, " m"]]:
    """(effectiveness a token of the corpus, saved nats at each position in closed form, document of each) of a feature's
    edges to tokens; `p` is of these tokens at all readings. Positions without a next token are left out."""
    at, value, rate = read.of(seen, source.label, feature)
    known = read.following[at].numpy() >= 0
    at, value = at[known], value[known]
    if not len(at):
        return np.zeros(len(tokens)), np.empty((0, len(tokens))), np.empty(0, dtype=np.int64)
    odds = p[at].double()
    push = torch.from_numpy(value)[:, None] * torch.from_numpy(weight)[None]
    said = (read.following[at][:, None] == torch.from_numpy(tokens)[None]).double()
    saved = torch.log1p(-odds * (-torch.expm1(-push))) + push * said
    nats = rate * 0.5 * (push.square() * odds * (1 - odds)).mean(0)
    return nats.numpy(), saved.numpy(), read.document[at]


def _losses(
    model: WhiteBoxModel, tokens: Tensor, edits: Sequence[Edit], where: Tensor
) -> Float[Tensor, " rows"]:
    """Loss on a row's own tokens from a position on, nats, float64."""
    said = model.logits(tokens, edits).double().cpu()[:, :-1].log_softmax(-1)
    own = -said.gather(2, tokens.cpu()[:, 1:, None])[..., 0]
    after = torch.arange(own.shape[1])[None] >= where[:, None]
    return (own * after).sum(1)
