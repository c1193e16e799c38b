"""lvspec: captions of and answers about videos by loose speculative decoding with local Video-LLMs."""

__version__ = "0.1.0"
