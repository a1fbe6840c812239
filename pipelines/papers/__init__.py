"""The stages that make what the papers train and evaluate on: derived events, labels, copies, triplets and graphs."""
