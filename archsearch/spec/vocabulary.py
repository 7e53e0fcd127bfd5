"""Token ids that specs, data and recall tasks agree on.

A spec must know its vocabulary's size to count parameters, and may not import the data room, so the
numbers live here; `archsearch.data.tokenizer` builds the tokenizer from them.
"""

END_OF_DOCUMENT = 0
"""Byte 0 never occurs in text; it ends every document and starts every packed stream."""

BYTES = 256
SYMBOLS = 128
"""Ids 256..383 are reserved for synthetic recall tasks: no text ever contains them."""

FIRST_SYMBOL = BYTES

TOKENIZERS: dict[str, int] = {"bytes": BYTES + SYMBOLS}
"""Tokenizer name -> vocabulary size."""
