"""Documents -> tokens -> packed blocks -> batches. See docs/data.md.

corpus.py     all of it: what a run trains and validates on
files.py      one file -> its documents            split.py      train or validation, by a hash
sources.py    what --data names -> all documents   tokenizer.py  trained, or loaded
packing.py    documents -> token streams on disk   streaming.py  the same for hub data, while training runs
store.py      streams -> blocks                    order.py      blocks -> the batch of step t
cache.py      folders that are whole or absent     network.py    is the hub there at all
"""

from switchlora.data.corpus import Corpus, load_corpus, load_text
from switchlora.data.order import batch
from switchlora.data.store import Blocks

__all__ = ["Blocks", "Corpus", "batch", "load_corpus", "load_text"]
