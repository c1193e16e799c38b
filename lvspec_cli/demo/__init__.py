"""The bundled pair and its world: procedural scenes, their captions and questions, and training."""
