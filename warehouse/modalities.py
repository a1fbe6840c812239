"""The modalities of items, and their places in the vocabulary."""

MODALITIES = ("ct", "wsi", "ecg", "cxr", "note")
