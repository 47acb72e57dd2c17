"""Options that several commands share; no command itself."""

import argparse

from data_pipelines.storage import place_here

_UNCHECKED = "even where nothing tells whether {whom} subjects were trained on (see `csfm data overlap`)"


class WrittenHere(argparse.Action):
    """An option that names what a command writes, on this machine alone: a `Path`; BadInput for an address."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, place_here(values, option_string))


def of_fine_tuned(parser, doing: str, whom: str) -> None:
    """Which fine-tuned model is used on which stores. doing, whom: what --unchecked-subjects accepts, of whom."""
    parser.add_argument("--checkpoint", required=True, help="work directory of csfm finetune, or one step in it")
    of_stores(parser, doing, whom)


def of_stores(parser, doing: str, whom: str) -> None:
    """Which stores are read, how they are checked, and whether their subjects are."""
    parser.add_argument("--store", required=True, help="a store, a folder of stores, or several separated by commas")
    parser.add_argument("--unchecked-subjects", action="store_true", help=f"{doing} {_UNCHECKED.format(whom=whom)}")
    parser.add_argument("--verify", choices=("full", "size"), default="full", help="how stores are checked before use")
