"""The demo world: procedural scenes as clips, their captions, facts and questions."""
