"""The training of the bundled pair: ``python -m tools.train_demo.train``."""
