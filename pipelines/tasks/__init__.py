"""What models are evaluated on: definitions of tasks, derived events, and the rules that make labels of events."""
