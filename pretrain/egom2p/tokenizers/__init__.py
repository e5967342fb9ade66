"""Tokenizers: clips of one modality to ids and back. The contract and the table are in `tokenizer.py`."""
